// The index functions of csrc/include, for tests one by one.
#include "secateur/accumulator.h"
#include "secateur/fragment24.h"
#include "secateur/schedule.h"
#include "secateur/wide/staging.h"
#include "secateur/x_tile.h"

using namespace secateur;

extern "C" {

int64_t index_unit_offset(int64_t panel, int64_t step, int64_t steps) {
  return fragment24::unit_offset(panel, step, steps);
}
int index_value_offset(int fragment, int lane) { return fragment24::value_offset(fragment, lane); }
int index_metadata_offset(int lane) { return fragment24::metadata_offset(lane); }
int index_metadata_lane(int lane, int fragment, int half) {
  return fragment24::metadata_lane(lane, fragment, half);
}
uint32_t index_nibble(uint32_t word, int lane, int half) {
  return fragment24::nibble(word, lane, half);
}
int index_group_column(int lane, int fragment, int half) {
  return fragment24::group_column(lane, fragment, half);
}
int index_value_register(int row_half, int column_half) {
  return fragment24::value_register(row_half, column_half);
}
int64_t index_logical_row(int64_t tile, int row, int64_t rows, int gate_up) {
  return fragment24::logical_row(tile, row, rows, gate_up != 0);
}
uint64_t index_expand_group(uint32_t values, uint32_t nibble) {
  return fragment24::expand_group(values, nibble);
}
int index_chunk_offset(int token, int chunk) { return x_tile::chunk_offset(token, chunk); }
int index_operand_offset(int lane, int token_tile, int fragment) {
  return static_cast<int>((x_tile::operand_offset(lane) ^ (fragment * x_tile::second_fragment)) +
                          token_tile * x_tile::token_tile_bytes);
}
int index_valid_bytes(int column, int columns) { return x_tile::valid_bytes(column, columns); }
int index_accumulator_row(int lane, int item) { return accumulator::row(lane, item); }
int index_accumulator_token(int lane, int item) { return accumulator::token(lane, item); }
int index_staging_token(int gated, int lane) { return wide::staging::token(gated != 0, lane); }
int index_staging_half(int gated, int lane) { return wide::staging::half(gated != 0, lane); }
int index_staging_row_offset(int gated, int lane) {
  return wide::staging::row_offset(gated != 0, lane);
}
int index_staging_matrix_row_offset(int gated, int lane) {
  return wide::staging::matrix_row_offset(gated != 0, lane);
}
int index_staging_rounds_together(int all) { return wide::staging::rounds_together(all); }
int schedule_first_unit(int row_blocks, int steps, int blocks, int block) {
  return Schedule{row_blocks, steps, blocks}.first_unit(block);
}
int schedule_block_of(int row_blocks, int steps, int blocks, int unit) {
  return Schedule{row_blocks, steps, blocks}.block_of(unit);
}
int schedule_slot(int row_blocks, int steps, int blocks, int block, int row_block) {
  return Schedule{row_blocks, steps, blocks}.slot(block, row_block);
}
int64_t schedule_slots(int row_blocks, int steps, int blocks) {
  return Schedule{row_blocks, steps, blocks}.slots();
}
int schedule_fits(int64_t row_blocks, int64_t steps, int64_t blocks) {
  return Schedule::fits(row_blocks, steps, blocks);
}
}
