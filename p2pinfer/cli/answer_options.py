"""Options that say how answers are generated and checked."""

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from p2pinfer.cli.options import ANSWERS, PRIVACY, option
from p2pinfer.cli.sizes import check_range
from p2pinfer.core.errors import UserError
from p2pinfer.core.limits import AUDIT_RATE_DEFAULT, PROOF_RATE_DEFAULT

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.client.answer import ChatOptions
    from p2pinfer.engine.gguf.sampling_advice import Advice

_SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
"""Options that are fields of ``Sampling``."""


@Parameter(name="*")
@dataclass(frozen=True)
class AnswerFlags:
    """How answers are generated and checked."""

    max_tokens: Annotated[
        int | None,
        option(
            "max-tokens",
            "Maximum tokens in an answer. If omitted: as many as fit in the context.",
            group=ANSWERS,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        option(
            "temperature",
            "Sampling temperature; 0 is greedy. If omitted: the model's own value, or 0.7.",
            group=ANSWERS,
        ),
    ] = None
    top_k: Annotated[
        int | None,
        option(
            "top-k",
            "Sample from the k most likely tokens only; 0 means all. If omitted: the model's own"
            " value, or 40.",
            group=ANSWERS,
        ),
    ] = None
    top_p: Annotated[
        float | None,
        option(
            "top-p",
            "Sample from the most likely tokens up to this total probability. If omitted: the"
            " model's own value, or 0.95.",
            group=ANSWERS,
        ),
    ] = None
    min_p: Annotated[
        float | None,
        option(
            "min-p",
            "Drop tokens less likely than this fraction of the most likely one. If omitted: the"
            " model's own value, or 0.05.",
            group=ANSWERS,
        ),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        option(
            "repeat-penalty",
            "Penalty for repeating tokens; above 1 discourages it. If omitted: the model's own"
            " value, or none.",
            group=ANSWERS,
        ),
    ] = None
    seed: Annotated[
        int | None,
        option("seed", "Random seed for sampling. If omitted: a new one each time.", group=ANSWERS),
    ] = None
    system: Annotated[
        str | None,
        option(
            "system",
            "System message. If omitted: the one recommended for the model, if any.",
            group=ANSWERS,
        ),
    ] = None
    stop: Annotated[
        tuple[str, ...],
        option("stop", "Text that ends an answer; may be given several times.", group=ANSWERS),
    ] = ()
    chat_template: Annotated[
        Path | None,
        option(
            "chat-template",
            "Jinja file to use instead of the model's own chat template.",
            group=ANSWERS,
        ),
    ] = None
    parse_special: Annotated[
        bool,
        option(
            "parse-special",
            "Treat <|im_end|> and the like in a message as special tokens, not as text.",
            negative="",
            group=ANSWERS,
        ),
    ] = False
    think: Annotated[
        bool,
        option(
            "think",
            "Let the model think before it answers. --no-think tells the chat template not to, and"
            " closes a thought that the prompt opens.",
            group=ANSWERS,
        ),
    ] = True
    keep_layers: Annotated[
        int,
        option(
            "keep-layers",
            "Layers at each end of the model that this machine runs itself. With 0 it runs the"
            " embedding and the head alone, and stages see what amounts to tokens.",
            group=PRIVACY,
        ),
    ] = 1
    show_tokens: Annotated[
        bool,
        option(
            "show-tokens",
            "Allow --keep-layers 0 on an open network, whose stages can then read everything.",
            negative="",
            group=PRIVACY,
        ),
    ] = False
    audit_rate: Annotated[
        float,
        option(
            "audit-rate",
            "Share of stages, 0 to 1, whose work is run again elsewhere to check it.",
            group=PRIVACY,
        ),
    ] = AUDIT_RATE_DEFAULT
    proof_rate: Annotated[
        float,
        option(
            "proof-rate",
            "Share of stages, 0 to 1, that must also open rows, which this machine checks with its"
            " proof key (p2pinfer model proof-key).",
            group=PRIVACY,
        ),
    ] = PROOF_RATE_DEFAULT
    sponsor: Annotated[
        bool,
        option(
            "sponsor",
            "Ask on the account of a peer that serves on this machine. Full stages prefer such"
            " requests, and learn that the two belong together.",
            group=PRIVACY,
        ),
    ] = True
    anonymous: Annotated[
        bool,
        option(
            "anonymous",
            "With --sponsor, have the peer vouch as one of several: stages learn that some serving"
            " peer does, but not which. Its work for them then earns no preference, and what this"
            " machine receives is not signed for.",
            negative="",
            group=PRIVACY,
        ),
    ] = False
    draft: Annotated[
        bool,
        option(
            "draft",
            "Send likely next tokens ahead, taken from the text so far. Over slow links answers"
            " that repeat some of it come faster; no answer changes.",
            group=ANSWERS,
        ),
    ] = True
    draft_model: Annotated[
        str | None,
        option(
            "draft-model",
            "Small model of the same family, all of it on this machine, that also says which tokens"
            " to send ahead.",
            group=ANSWERS,
        ),
    ] = None
    certificate: Annotated[
        Path | None,
        option("certificate", "File to write the latest answer's certificate to.", group=PRIVACY),
    ] = None
    require_verified: Annotated[
        bool,
        option(
            "require-verified",
            "Hold an answer back until all its checks have passed.",
            negative="",
            group=PRIVACY,
        ),
    ] = False

    def options(self, advice: "Advice | None" = None) -> "ChatOptions":
        """Return the options of an answer; where a flag is not set, the model's advice counts.

        Raises:
            UserError: a value is out of range.
        """
        from p2pinfer.client.answer import ChatOptions
        from p2pinfer.core.sampling import SEEDS, USUAL, sampling_of
        from p2pinfer.node.model_supply import check_named

        check_range("max-tokens", 1 if self.max_tokens is None else self.max_tokens, 1)
        check_range("keep-layers", self.keep_layers, 0)
        check_range("audit-rate", self.audit_rate, 0, 1)
        check_range("proof-rate", self.proof_rate, 0, 1)
        if self.draft_model and not self.draft:
            raise UserError("--draft-model is for drafts, which --no-draft switches off: drop one")
        check_named(self.draft_model)
        if "" in self.stop:
            raise UserError("--stop '' would end every answer before it begins: omit it")
        if self.certificate:
            folder = self.certificate.absolute().parent
            if not folder.is_dir() or not os.access(folder, os.W_OK):
                raise UserError(
                    f"--certificate {self.certificate}: {folder} is no folder that you may write to"
                )
        try:
            said = {name: getattr(self, name) for name in _SAMPLED}
            drawn = {"seed": secrets.randbelow(SEEDS)}
            sampling = sampling_of(USUAL, advice.sampling if advice else {}, drawn, said)
        except ValueError as error:  # attrs says: 'top_p' must be <= 1: 2.0
            text = re.sub(r"'(\w+)'", lambda name: f"--{name[1].replace('_', '-')}", str(error))
            raise UserError(text) from error
        return ChatOptions(
            sampling,
            self.max_tokens,
            advice.system if advice and self.system is None else self.system,
            self.stop,
            self.require_verified,
            self.certificate,
            self.parse_special,
            self.think,
        )

    def template(self) -> str | None:
        """Return the chat template to use, or None for the model's own; raises UserError."""
        from p2pinfer.engine.template import read_template

        return read_template(self.chat_template) if self.chat_template else None


ANSWER = AnswerFlags()
