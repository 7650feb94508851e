"""Names of published models, and which files of a repository they mean."""

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.node.published import (
    PublishedFile,
    PublishedName,
    choose,
    label_of,
    labels,
    parse_published,
    variants,
)


@pytest.mark.parametrize(
    ("text", "repository", "quantisation"),
    [
        ("hf:unsloth/gpt-oss-120b-GGUF", "unsloth/gpt-oss-120b-GGUF", None),
        ("hf:unsloth/gpt-oss-120b-GGUF:Q4_K_M", "unsloth/gpt-oss-120b-GGUF", "Q4_K_M"),
        ("HF://o/r:ud-q2_k_xl", "o/r", "ud-q2_k_xl"),
        ("hf.co/o/r:Q8_0", "o/r", "Q8_0"),
        ("https://huggingface.co/o/r", "o/r", None),
        ("https://huggingface.co/o/r/", "o/r", None),
        ("o/r@q4_k_m", "o/r", "q4_k_m"),
        ("o/r:Q4_K_M", "o/r", "Q4_K_M"),
        ("hf:o/Qwen2.5-0.5B", "o/Qwen2.5-0.5B", None),
    ],
)
def test_spellings(text: str, repository: str, quantisation: str | None) -> None:
    """Of our own, of llama.cpp, of Ollama and of LM Studio."""
    assert parse_published(text) == PublishedName(repository, quantisation)


@pytest.mark.parametrize(
    "text",
    ["default", "m.gguf", "models/m.gguf", "o/r", "/o/r:Q4", "a/b/c:Q4", "./o/r@q", "0abc12"],
)
def test_paths_are_no_names(text: str) -> None:
    """Nor is ``owner/repo`` alone, which may be a path."""
    assert parse_published(text) is None


@pytest.mark.parametrize("text", ["hf:", "hf:o", "hf:o/r:", "hf:../r", "hf:o/..", "hf:o/r/m.gguf"])
def test_what_only_begins_like_a_name_is_refused(text: str) -> None:
    """The sentence shows how one is written."""
    with pytest.raises(UserError, match=r"names no model: write hf:owner/repo"):
        parse_published(text)


def files(*paths: str) -> list[PublishedFile]:
    """Make up files."""
    return [PublishedFile(path, 1_000_000_000 + n) for n, path in enumerate(paths)]


def test_shards_are_one_model() -> None:
    """Those without all of their shards, and what lies beside models, are none."""
    found = variants(
        files(
            "README.md",
            "mmproj-F16.gguf",
            "imatrix_unsloth.gguf",
            "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf",
            "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf",
            "Q8_0/m-Q8_0-00001-of-00003.gguf",
            "Q8_0/m-Q8_0-00003-of-00003.gguf",
            "m-UD-IQ2_XXS.gguf",
        )
    )
    assert {each.label: [file.path for file in each.files] for each in found} == {
        "Q4_K_M": [f"Q4_K_M/m-Q4_K_M-0000{n}-of-00002.gguf" for n in (1, 2)],
        "UD-IQ2_XXS": ["m-UD-IQ2_XXS.gguf"],
    }
    assert found[0].nbytes == 2_000_000_007


@pytest.mark.parametrize(
    ("stem", "label"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "Q4_1"),
        ("gpt-oss-20b-MXFP4", "MXFP4"),
        ("gpt-oss-20b-mxfp4_moe", "mxfp4_moe"),
        ("Qwen3-8B-bf16", "bf16"),
        ("model-IQ4_NL", "IQ4_NL"),
        ("Q8_0/model-Q8_0", "Q8_0"),
        ("IQ1-base", "IQ1"),
        ("ggml-model", "ggml-model"),
        ("FAQ4U", "FAQ4U"),
    ],
)
def test_labels(stem: str, label: str) -> None:
    """A file's name says its quantisation; else it is its own label."""
    assert label_of(stem) == label


def chosen(quantisation: str | None, *paths: str) -> str:
    """Return the first file of the chosen model."""
    return choose(PublishedName("o/r", quantisation), variants(files(*paths))).files[0].path


def test_choosing() -> None:
    """As llama.cpp chooses, but a whole word must match, and the exact one wins."""
    every = ("m-IQ4_XS.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-UD-Q4_K_M.gguf")
    assert chosen(None, *every) == "m-Q4_K_M.gguf"
    assert chosen(None, "m-Q8_0.gguf", "m-Q2_K.gguf") == "m-Q8_0.gguf"
    assert chosen(None, "m-Q3_K.gguf", "m-Q2_K.gguf") == "m-Q2_K.gguf"
    assert chosen("q8_0", *every) == "m-Q8_0.gguf"
    assert chosen("UD-Q4_K_M", *every) == "m-UD-Q4_K_M.gguf"
    assert chosen("q4_k_m", "m-UD-Q4_K_M.gguf", "n-Q4_K_M.gguf") == "n-Q4_K_M.gguf"
    assert chosen("q4_k_m", "m-UD-Q4_K_M.gguf") == "m-UD-Q4_K_M.gguf"
    with pytest.raises(UserError, match=r"o/r has no Q4_XS; it has: IQ4_XS \(1\.0 GB\), Q4_K_M"):
        chosen("Q4_XS", *every)
    with pytest.raises(UserError, match="o/r has no whole model in GGUF"):
        chosen("Q4_XS")


def test_long_lists_end() -> None:
    """A sentence names 24 of them."""
    many = variants(files(*(f"m-{n:02}.gguf" for n in range(30))))
    assert labels(many)[0] == "m-00 (1.0 GB)"
    assert labels(many)[24:] == ["6 more"]
