"""Train a small Llama language model on a folder of text files.

The defaults give the shape of the bundled example model (8.4M parameters); the options make it
larger, and ``--init-from`` goes on from a model that exists already. One command does it all::

    python examples/train_small_model.py books/ my-model/ --num-tokens 30000000

The texts are every ``*.txt`` and ``*.txt.gz`` of the folder, in the order of their names. A line
``<|endoftext|>`` separates two documents of one file, and the end of a file ends a document. The
model sees each such boundary as its end-of-sequence token, never as text.

The result is a normal Hugging Face folder: weights in bfloat16, tokenizer, generation
configuration. Beside it, in ``checkpoints/``, lie the trainer's last two checkpoints, from which
``--resume`` goes on after an interruption; they may be deleted once the training is done.
"""

import gzip
import math
import os
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from secateur.cli.option_groups import with_option_groups

DOCUMENT_SEPARATOR = "<|endoftext|>"
SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")  # ids 0, 1 and 2
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)  # every byte is a token of its own
DOCUMENTS_PER_BATCH = 16  # tokenised at a time, in parallel
CHECKPOINTS = "checkpoints"

of_shape = partial(typer.Option, rich_help_panel="Shape of a new model")
of_length = partial(typer.Option, rich_help_panel="Length")
of_optimizer = partial(typer.Option, rich_help_panel="Optimizer and device")
of_reports = partial(typer.Option, rich_help_panel="Evaluation and checkpoints")


class TrainingError(ValueError):
    """Input that cannot be trained on; the message says what was expected and what came."""


@dataclass(frozen=True)
class ModelShape:
    """The size of a new Llama model: widths in features, lengths and vocabulary in tokens."""

    hidden_size: Annotated[int, of_shape()] = 256
    num_blocks: Annotated[int, of_shape()] = 8
    num_heads: Annotated[int, of_shape()] = 4
    num_kv_heads: Annotated[int, of_shape()] = 2
    intermediate_size: Annotated[int, of_shape()] = 768
    vocab_size: Annotated[int, of_shape()] = 8192
    context_length: Annotated[int, of_shape()] = 1024

    def validate(self) -> None:
        """Raise ``TrainingError`` where no Llama model has this shape."""
        for name, value in vars(self).items():
            if value < 1:
                raise TrainingError(f"{name} must be positive, got {value}")
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise TrainingError(
                f"vocab_size must be at least {MIN_VOCAB_SIZE} (256 bytes and "
                f"{len(SPECIAL_TOKENS)} special tokens), got {self.vocab_size}"
            )
        if self.hidden_size % (2 * self.num_heads):
            raise TrainingError(
                f"hidden_size must be a multiple of 2 x num_heads = {2 * self.num_heads} "
                f"(rotary embeddings pair the features of a head), got {self.hidden_size}"
            )
        if self.num_heads % self.num_kv_heads:
            raise TrainingError(
                f"num_heads must be a multiple of num_kv_heads = {self.num_kv_heads}, "
                f"got {self.num_heads}"
            )


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train: sizes in windows, lengths in tokens or optimizer steps.

    Without ``num_tokens`` and ``max_steps`` the training windows are seen once. ``warmup`` below
    one is a share of the steps, from one on a number of steps. ``eval_share`` of the windows, cut
    from the end of the texts, is held out.
    """

    max_seq_length: Annotated[int, of_length(help="Tokens in a training window.")] = 512
    num_tokens: Annotated[
        int | None, of_length(help="Tokens to train on. Default: the texts once.")
    ] = None
    max_steps: Annotated[int | None, of_length(help="Optimizer steps, instead.")] = None
    per_device_batch_size: Annotated[int, of_optimizer(help="Windows at a time on a device.")] = 16
    gradient_accumulation_steps: Annotated[int, of_optimizer()] = 1
    learning_rate: Annotated[float, of_optimizer(help="Peak; a cosine leads down from it.")] = (
        2.5e-3
    )
    warmup: Annotated[float, of_optimizer(help="Below one a share of the steps, else steps.")] = (
        0.03
    )
    weight_decay: Annotated[float, of_optimizer()] = 0.1
    bf16: Annotated[bool, of_optimizer("--bf16", help="Compute in bfloat16 where safe.")] = False
    cpu: Annotated[bool, of_optimizer("--cpu", help="Leave an accelerator unused.")] = False
    seed: Annotated[int, of_optimizer()] = 0
    eval_share: Annotated[float, of_reports(help="Share of the windows held out.")] = 0.01
    eval_steps: Annotated[int, of_reports()] = 500
    save_steps: Annotated[int, of_reports()] = 500
    logging_steps: Annotated[int, of_reports()] = 50

    def validate(self) -> None:
        """Raise ``TrainingError`` where the plan contradicts itself."""
        for name in (
            "per_device_batch_size",
            "gradient_accumulation_steps",
            "learning_rate",
            "eval_steps",
            "save_steps",
            "logging_steps",
            "num_tokens",
            "max_steps",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TrainingError(f"{name} must be positive, got {value}")
        if self.num_tokens is not None and self.max_steps is not None:
            raise TrainingError("give num_tokens or max_steps, not both")
        if self.max_seq_length < 2:
            raise TrainingError(f"max_seq_length must be at least 2, got {self.max_seq_length}")
        if not 0 < self.eval_share < 1:
            raise TrainingError(f"eval_share must lie between 0 and 1, got {self.eval_share}")
        for name in ("warmup", "weight_decay"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainingOutcome:
    """What came of a training: losses are mean cross-entropies, nats a held-out token.

    ``validation_loss`` is that of the saved weights, so after their rounding to bfloat16.
    """

    output: Path
    num_parameters: int
    num_steps: int
    initial_loss: float
    validation_loss: float


class TokenWindows(Dataset[dict[str, torch.Tensor]]):
    """Equal windows of one long run of tokens, in the form that the Trainer wants.

    ``tokens`` is int32 ``[num_windows, max_seq_length]``; an item is a window as int64
    ``[max_seq_length]``, given as input and as labels (the model shifts the labels itself).
    """

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        window = self.tokens[index].long()
        return {"input_ids": window, "labels": window}


def list_text_files(folder: Path) -> list[Path]:
    """The ``*.txt`` and ``*.txt.gz`` files of a folder, in the order of their names."""
    if not folder.is_dir():
        raise TrainingError(f"expected a folder of text files, but there is no folder {folder}")
    files = sorted(path for path in folder.iterdir() if path.name.endswith((".txt", ".txt.gz")))
    if not files:
        raise TrainingError(f"expected *.txt or *.txt.gz files, but found none in {folder}")
    return files


def open_text(path: Path) -> TextIO:
    """Open a plain or gzipped file as UTF-8 text."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def split_documents(lines: Iterable[str]) -> Iterator[str]:
    """The documents between separator lines, without the blank lines around them."""
    document: list[str] = []
    for line in lines:
        if line.strip() == DOCUMENT_SEPARATOR:
            yield "".join(document).strip()
            document = []
        else:
            document.append(line)
    yield "".join(document).strip()


def read_documents(folder: Path) -> Iterator[str]:
    """Every document of a folder that is not blank, read as a stream."""
    for path in list_text_files(folder):
        try:
            with open_text(path) as lines:
                yield from filter(None, split_documents(lines))
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise TrainingError(f"expected UTF-8 text in {path}: {error}") from error


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, context_length: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most ``vocab_size`` tokens, learned from documents.

    A text of little variety may offer fewer merges than asked for: ``len(tokenizer)`` tells.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe_trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer=bpe_trainer)
    bos, eos, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        model_max_length=context_length,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer saved in a local folder, which has to know an end-of-sequence token."""
    if not folder.is_dir():
        raise TrainingError(f"expected a saved tokenizer, but there is no folder {folder}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise TrainingError(f"expected a saved tokenizer in {folder}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"expected an end-of-sequence token in the tokenizer of {folder}")
    return tokenizer


def encode_documents(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[list[int]]:
    """The token ids of each document, ended by the end-of-sequence token.

    A special token's name that stands in a document is encoded as the text it is there.
    """
    stream = iter(documents)
    while batch := list(islice(stream, DOCUMENTS_PER_BATCH)):
        encoded = tokenizer(
            batch,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for ids in encoded["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]


def pack_windows(encoded: Iterable[list[int]], max_seq_length: int) -> torch.Tensor:
    """Documents joined end to end, cut into int32 ``[num_windows, max_seq_length]``.

    What is left over at the end and fills no window is dropped.
    """
    tokens = array("i")
    for ids in encoded:
        tokens.extend(ids)
    num_windows = len(tokens) // max_seq_length
    if num_windows < 2:
        raise TrainingError(
            f"expected at least {2 * max_seq_length} tokens (two windows of {max_seq_length}: "
            f"one to train on, one to hold out), got {len(tokens)}"
        )
    used = torch.frombuffer(tokens, dtype=torch.int32, count=num_windows * max_seq_length)
    return used.view(num_windows, max_seq_length)


def split_windows(windows: torch.Tensor, eval_share: float) -> tuple[TokenWindows, TokenWindows]:
    """Training and held-out windows; the held-out ones, at least one, are the last.

    They are cut from the end rather than drawn, so that they come from other documents than
    the training windows, but for the document at the cut.
    """
    num_windows = windows.shape[0]
    num_held_out = min(max(1, round(num_windows * eval_share)), num_windows - 1)
    cut = num_windows - num_held_out
    return TokenWindows(windows[:cut]), TokenWindows(windows[cut:])


def build_model(shape: ModelShape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A float32 Llama model with random weights and tied embeddings."""
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_blocks,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.context_length,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def load_model(folder: Path) -> Any:
    """A saved causal language model in float32, from a local folder."""
    if not folder.is_dir():
        raise TrainingError(f"expected a saved model, but there is no folder {folder}")
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"expected a saved model in {folder}: {error}") from error


def find_checkpoint(output: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None for a new training into an empty output folder."""
    if resume:
        folder = output / CHECKPOINTS
        found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if found is None:
            raise TrainingError(f"expected a checkpoint to resume from, but found none in {folder}")
        return Path(found)
    if output.exists() and not output.is_dir():
        raise TrainingError(f"expected an empty or new folder, but {output} is a file")
    if output.is_dir() and any(output.iterdir()):
        raise TrainingError(
            f"expected an empty or new folder, but {output} holds files already; "
            "choose another, or --resume to go on with an interrupted training"
        )
    return None


def check_window_length(model: Any, max_seq_length: int) -> None:
    """Raise ``TrainingError`` where a window is longer than the model's context."""
    context_length = getattr(model.config, "max_position_embeddings", None)
    if context_length is not None and max_seq_length > context_length:
        raise TrainingError(
            f"max_seq_length must not exceed the context of {context_length} tokens, "
            f"got {max_seq_length}"
        )


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ``TrainingError`` where the tokenizer makes ids that the model has no row for."""
    num_rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_rows:
        raise TrainingError(
            f"expected a tokenizer of at most {num_rows} tokens for this model, "
            f"got {len(tokenizer)}"
        )


def make_arguments(plan: TrainingPlan, output: Path, num_windows: int) -> TrainingArguments:
    """The plan in the Trainer's terms, its length worked out in optimizer steps."""
    arguments = TrainingArguments(
        output_dir=str(output / CHECKPOINTS),
        per_device_train_batch_size=plan.per_device_batch_size,
        per_device_eval_batch_size=plan.per_device_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        optim="adamw_torch",
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup,
        weight_decay=plan.weight_decay,
        adam_beta2=0.95,
        bf16=plan.bf16,
        use_cpu=plan.cpu or not torch.cuda.is_available(),
        seed=plan.seed,
        eval_strategy="steps",
        eval_steps=plan.eval_steps,
        eval_on_start=True,
        prediction_loss_only=True,
        save_steps=plan.save_steps,
        save_total_limit=2,
        logging_steps=plan.logging_steps,
        dataloader_pin_memory=not plan.cpu and torch.cuda.is_available(),
        disable_tqdm=not sys.stderr.isatty(),
        report_to="none",
    )
    arguments.max_steps = plan.max_steps or count_steps(arguments, plan, num_windows)
    return arguments


def count_steps(arguments: TrainingArguments, plan: TrainingPlan, num_windows: int) -> int:
    """Optimizer steps that see ``num_tokens`` tokens, or every training window once."""
    windows_per_step: int = (
        arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    )
    num_tokens = plan.num_tokens or num_windows * plan.max_seq_length
    return math.ceil(num_tokens / (windows_per_step * plan.max_seq_length))


def round_weights(model: torch.nn.Module) -> None:
    """Round float32 weights in place to values that bfloat16 holds exactly."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))


def save_result(model: Any, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Save weights in bfloat16, tokenizer and configurations as a Hugging Face folder.

    The files are written aside and renamed, ``config.json`` last: without it nothing loads, so
    an interruption leaves no half model behind.
    """
    aside = output / ".saving"
    model.config.use_cache = True  # the Trainer had turned the key-value cache off
    model.to(torch.bfloat16).save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, output / path.name)
    aside.rmdir()


def run_trainer(
    trainer: Trainer, tokenizer: PreTrainedTokenizerFast, output: Path, checkpoint: Path | None
) -> TrainingOutcome:
    """Train, round, evaluate and save."""
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    history = trainer.state.log_history
    initial_loss = next(entry["eval_loss"] for entry in history if "eval_loss" in entry)
    round_weights(trainer.model)
    validation_loss = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        save_result(trainer.model, tokenizer, output)
    return TrainingOutcome(
        output=output,
        num_parameters=trainer.model.num_parameters(),
        num_steps=trainer.state.global_step,
        initial_loss=initial_loss,
        validation_loss=validation_loss,
    )


def train(
    texts: Path,
    output: Path,
    shape: ModelShape,
    plan: TrainingPlan,
    tokenizer_from: Path | None = None,
    init_from: Path | None = None,
    resume: bool = False,
) -> TrainingOutcome:
    """Train a model on the texts of a folder and save it in ``output``.

    A new model has ``shape`` and a tokenizer learned from the texts, or the one of
    ``tokenizer_from``. With ``init_from``, or ``resume``, both come from what was saved.
    """
    shape.validate()
    plan.validate()
    if tokenizer_from is not None and init_from is not None:
        raise TrainingError("give a tokenizer or a model to start from, not both")
    checkpoint = find_checkpoint(output, resume)
    list_text_files(texts)
    set_seed(plan.seed)
    start = checkpoint or init_from
    model = None if start is None else load_model(start)
    saved_tokenizer = start or tokenizer_from
    if saved_tokenizer is None:
        typer.echo(f"learning {shape.vocab_size} tokens from {texts}")
        tokenizer = train_tokenizer(read_documents(texts), shape.vocab_size, shape.context_length)
    else:
        tokenizer = load_tokenizer(saved_tokenizer)
    if model is None:
        model = build_model(shape, tokenizer)
    check_window_length(model, plan.max_seq_length)
    check_vocabulary(model, tokenizer)
    windows = pack_windows(encode_documents(read_documents(texts), tokenizer), plan.max_seq_length)
    train_windows, held_out_windows = split_windows(windows, plan.eval_share)
    arguments = make_arguments(plan, output, len(train_windows))
    typer.echo(
        f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens in the vocabulary; "
        f"{len(train_windows):,} windows of {plan.max_seq_length} to train on, "
        f"{len(held_out_windows):,} held out; {arguments.max_steps:,} steps"
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train_windows,
        eval_dataset=held_out_windows,
        processing_class=tokenizer,
    )
    return run_trainer(trainer, tokenizer, output, checkpoint)


@with_option_groups
def main(
    texts: Annotated[Path, typer.Argument(help="Folder of *.txt and *.txt.gz files.")],
    output: Annotated[Path, typer.Argument(help="New or empty folder for the model.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Reuse this saved tokenizer instead of learning one.")
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(help="Go on from this saved model, with its shape and its tokenizer."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in OUTPUT.")
    ] = False,
    *,
    shape: ModelShape,
    plan: TrainingPlan,
) -> None:
    """Train a small Llama language model on a folder of text files."""
    try:
        outcome = train(texts, output, shape, plan, tokenizer, init_from, resume)
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(
        f"validation loss {outcome.validation_loss:.4f} "
        f"(perplexity {math.exp(outcome.validation_loss):.2f}), "
        f"{outcome.initial_loss:.4f} before training"
    )
    typer.echo(f"saved in {outcome.output}")


if __name__ == "__main__":
    typer.run(main)
