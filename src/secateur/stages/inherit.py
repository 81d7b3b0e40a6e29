"""The inherit stage: first blocks, train, grow, until the parent's loss is reached."""

import copy
from dataclasses import dataclass, replace
from time import perf_counter

from torch import nn

from secateur.errors import SecateurError
from secateur.inherit.first_blocks import FirstBlocks
from secateur.inherit.start import initialise, initialise_part, stack_top
from secateur.models.device import input_embedding
from secateur.progress import Progress
from secateur.recipe import InheritStage
from secateur.report.training_record import InheritRecord, InheritRound
from secateur.stages.inherit_journal import RoundJournal
from secateur.training.checkpoints import CheckpointFolder
from secateur.training.evaluate import held_out_loss
from secateur.training.objective import Objective
from secateur.training.run import TrainingResult, TrainingTexts, run_training
from secateur.training.trainer import OptimizerState


def check_inherit_stage(stage: InheritStage, num_blocks: int) -> None:
    """Raise SecateurError if the stage asks for more blocks than there are."""
    most = stage.max_blocks or max(1, num_blocks - 1)
    if max(stage.blocks, most) > num_blocks:
        raise SecateurError(
            f"inherit: expected at most {num_blocks} blocks, as many as the model has, got "
            f"blocks {stage.blocks} and max_blocks {most}"
        )


def round_sizes(stage: InheritStage, num_blocks: int) -> tuple[int, ...]:
    """How many blocks each round has, if none before it reaches the parent's loss."""
    most = max(stage.blocks, stage.max_blocks or num_blocks - 1)
    sizes = list(range(stage.blocks, most + 1, stage.grow_by))
    return tuple(sizes if sizes[-1] == most else [*sizes, most])


def run_inherit(
    model: nn.Module,
    stage: InheritStage,
    texts: TrainingTexts,
    place: CheckpointFolder,
    progress: Progress,
    on_cpu: bool = False,
) -> InheritRecord:
    """Make a smaller model of a model, in place.

    Args:
        model: the parent; its blocks beyond the last round's are gone afterwards.
        stage: how many blocks, and how they are trained.
        texts: what is trained on, the same in every round.
        place: of checkpoints; claimed. Finished rounds are kept there, so that an interrupted stage
            resumes with the round that it was in.
        progress: told after each step.
        on_cpu: leave a GPU unused.

    Raises:
        SecateurError: the model cannot be built with fewer blocks, or the training diverged at
            once.
    """
    return _Inheritance(model, stage, texts, place, progress, on_cpu).run()


@dataclass
class _Inheritance:
    model: nn.Module
    stage: InheritStage
    texts: TrainingTexts
    place: CheckpointFolder
    progress: Progress
    on_cpu: bool

    def run(self) -> InheritRecord:
        started, stage = perf_counter(), self.stage
        parent_loss = held_out_loss(self.model, self.texts.held_out, stage.training.batch_size)
        parent = FirstBlocks(self.model)
        check_inherit_stage(stage, len(parent))
        teacher = copy.deepcopy(self.model) if stage.training.needs_teacher else None
        self._begin()
        rounds: list[InheritRound] = []
        warnings: list[str] = []
        moments: OptimizerState = {}
        for number, size in enumerate(round_sizes(stage, len(parent)), start=1):
            if rounds and stage.start == "stacked":
                before = rounds[-1].num_blocks
                stack_top(parent.modules, before, size - before)
            warnings += parent.keep(size)
            done, moments = self._round(number, size, teacher, moments)
            rounds.append(done)
            warnings += [done.run.note] if done.run.ending == "diverged" else []
            if done.run.loss_after <= parent_loss + stage.tolerance:
                break
        return InheritRecord(
            start=stage.start,
            part=stage.part,
            learning_rate=self.rate,
            minimised=stage.training.minimised,
            parent_blocks=len(parent),
            parent_loss=parent_loss,
            tolerance=stage.tolerance,
            rounds=tuple(rounds),
            warnings=tuple(dict.fromkeys(warnings)),
            seconds=perf_counter() - started,
        )

    @property
    def rate(self) -> float:
        return self.stage.learning_rate(input_embedding(self.model).shape[1])

    def _begin(self) -> None:
        seed = self.stage.training.seed
        if self.stage.start == "inherited":
            initialise_part(self.model, self.stage.part, seed)
        else:
            initialise(self.model, seed)

    def _round(
        self, number: int, size: int, teacher: nn.Module | None, moments: OptimizerState
    ) -> tuple[InheritRound, OptimizerState]:
        folder = replace(self.place, path=self.place.path / f"round-{number}")
        journal = RoundJournal(folder.path, self.model)
        carries = self.stage.optimizer == "carried"
        if folder.resume and (finished := journal.load(carries)) is not None:
            return finished
        result = self._train(number, size, teacher, moments if carries else None, folder)
        finished = InheritRound(num_blocks=size, run=result.run), result.optimizer_state
        journal.save(*finished, with_moments=carries)
        return finished

    def _train(
        self,
        number: int,
        size: int,
        teacher: nn.Module | None,
        carried: OptimizerState | None,
        folder: CheckpointFolder,
    ) -> TrainingResult:
        options = self.stage.training
        folder.path.mkdir(parents=True, exist_ok=True)
        objective = Objective(
            teacher=teacher,
            distillation_weight=options.distillation_weight if teacher is not None else 0.0,
            temperature=options.temperature,
        )
        return run_training(
            self.model,
            options,
            self.rate,
            self.texts,
            tuple(name for name, item in self.model.named_parameters() if item.is_floating_point()),
            folder,
            self.progress,
            objective=objective,
            carried=carried,
            on_cpu=self.on_cpu,
            task=f"round {number}: {size} blocks",
        )
