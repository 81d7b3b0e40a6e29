// csrc/include/secateur/tile_schedule.h, for tests.
#include "secateur/tile_schedule.h"

using namespace secateur;

extern "C" {

int tile_schedule_fits(int64_t row_blocks, int64_t token_blocks, int64_t steps, int64_t blocks,
                       int64_t waves, int64_t group) {
  return TileSchedule::fits(row_blocks, token_blocks, steps, blocks, waves, group);
}

void tile_schedule_place(const TileSchedule* schedule, int tile, int* place) {
  const TilePlace found = schedule->place(tile);
  place[0] = found.row_block;
  place[1] = found.token_block;
}

// Seven numbers a segment: tile, first step, end; whether it is whole; its slot; first and last
// contributor (-1 where it is whole). Returns how many segments a thread block has.
int tile_schedule_segments(const TileSchedule* schedule, int block, int64_t* out) {
  int count = 0;
  TileSegment segment;
  for (TileWalk walk(*schedule, block); walk.next(segment); ++count) {
    const bool whole = schedule->whole(segment);
    *out++ = segment.tile;
    *out++ = segment.first;
    *out++ = segment.end;
    *out++ = whole;
    *out++ = whole ? -1 : schedule->slot(block, schedule->later(block, segment.tile));
    *out++ = whole ? -1 : schedule->first_contributor(segment.tile);
    *out++ = whole ? -1 : schedule->last_contributor(segment.tile);
  }
  return count;
}

int64_t tile_schedule_slots(const TileSchedule* schedule) { return schedule->slots(); }
int tile_schedule_counters(const TileSchedule* schedule) { return schedule->counters(); }
int tile_schedule_counter(const TileSchedule* schedule, int tile) {
  return schedule->counter(tile);
}
}
