"""Fast tokenizers in which byte b has the id b + 3, and conversations in templates."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = 0, 1, 2
FIRST_BYTE = 3
TURN_BEGINS, TURN_ENDS = "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class CountingTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    """Counts how often it is asked for anything."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_calls = 0
        self.texts: list[str] = []

    def __call__(self, text: Any, **options: Any) -> Any:
        self.num_calls += 1
        self.texts += text
        return super().__call__(text, **options)

    def apply_chat_template(self, *args: Any, **options: Any) -> Any:
        self.num_calls += 1
        return super().apply_chat_template(*args, **options)


def byte_tokenizer(
    *,
    merges: list[tuple[str, str]] | None = None,
    adds_bos: bool = False,
    has_eos: bool = True,
    template: str | None = None,
) -> CountingTokenizer:
    """Merges are of byte-level characters, in which a space is `Ġ`; each makes one more id."""
    vocabulary = {"<s>": BOS, "</s>": EOS, "<pad>": PAD}
    vocabulary |= {character: byte + FIRST_BYTE for byte, character in _characters().items()}
    for first, second in merges or ():
        vocabulary[first + second] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges or []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    tokenizer = CountingTokenizer(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>" if has_eos else None,
        pad_token="<pad>",
        chat_template=template,
    )
    if template is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": [TURN_BEGINS, TURN_ENDS]})
    return tokenizer


def ids_of(text: str) -> list[int]:
    """Token ids of plain text, without merges."""
    return [byte + FIRST_BYTE for byte in text.encode()]


def text_of_ids(ids: list[int]) -> str:
    """The way back; what is no byte is shown as its id in brackets."""
    parts = [
        bytes([token - FIRST_BYTE]) if FIRST_BYTE <= token < FIRST_BYTE + 256 else b"[%d]" % token
        for token in ids
    ]
    return b"".join(parts).decode()


def _characters() -> dict[int, str]:
    """Which character stands for which byte: itself where it is printable, else one from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return {byte: chr(byte) for byte in printable} | stand_ins
