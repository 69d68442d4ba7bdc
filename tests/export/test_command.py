"""The command line: every wrong value is one line that names flag, value and limit, before any work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.exports import export

OPEN_CLIP = ("--open-clip", "ViT-B-32")
OWN = ("--module", "a:b", "--max-tokens", 5, "--vocabulary", 9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--name", "x"), "one of the arguments --open-clip --transformers --module is required"),
        ((*OPEN_CLIP, "--module", "a:b"), "argument --module: not allowed with argument --open-clip"),
        ((*OPEN_CLIP, "--role", "judge"), "argument --role: invalid choice: 'judge'"),
        ((*OPEN_CLIP, "--precision", "int8"), "argument --precision: invalid choice: 'int8'"),
        ((*OPEN_CLIP, "--interpolation", "nearest"), "argument --interpolation: invalid choice: 'nearest'"),
        ((*OPEN_CLIP, "--image-size", "big"), "argument --image-size: invalid int value: 'big'"),
        ((*OPEN_CLIP, "--image-size", 0), "--image-size is 0; must be 1 to 4096"),
        ((*OPEN_CLIP, "--image-size", 5000), "--image-size is 5000; must be 1 to 4096"),
        ((*OPEN_CLIP, "--patch-size", -1), "--patch-size is -1; must be 1 to 64"),
        ((*OPEN_CLIP, "--keep-patches", 0), "--keep-patches is 0.0; must be above 0 and at most 1"),
        ((*OPEN_CLIP, "--keep-patches", 1.1), "--keep-patches is 1.1; must be above 0 and at most 1"),
        ((*OPEN_CLIP, "--keep-patches", "nan"), "--keep-patches is nan; must be above 0 and at most 1"),
        ((*OPEN_CLIP, "--keep-patches", 0.5, "--image-size", 112), "--image-size is 112; --keep-patches looks at"),
        ((*OPEN_CLIP, "--keep-patches", 0.5, "--patch-size", 32), "--patch-size is 32; --keep-patches looks at"),
        ((*OPEN_CLIP, "--seed", -1), "--seed is -1; must be 0 to"),
        ((*OPEN_CLIP, "--name", ""), "--name is ''; must have 1 to 128 characters"),
        ((*OPEN_CLIP, "--licence", "x" * 129), "must have 0 to 128 characters"),
        ((*OPEN_CLIP, "--mean", "0.5,0.5"), "--mean is 0.5,0.5; must be one number, or three separated by commas"),
        ((*OPEN_CLIP, "--mean", "inf"), "--mean is inf; must be one number"),
        ((*OPEN_CLIP, "--std", "0.5,0,0.5"), "--std is 0.5,0,0.5; must be one number above 0, or three"),
        ((*OPEN_CLIP, "--std", "wide"), "--std is wide; must be one number above 0"),
        ((*OPEN_CLIP, "--fit", "stretch"), "argument --fit: invalid choice: 'stretch'"),
        ((*OPEN_CLIP, "--pad-token", -1), "--pad-token is -1; must be 0 to"),
        ((*OPEN_CLIP, "--end-token", -1), "--end-token is -1; must be 0 to"),
        ((*OPEN_CLIP, "--checkpoint", "/no/file.pt"), "--checkpoint is /no/file.pt; must be a file or a folder"),
        ((*OPEN_CLIP, "--tokenizer", "/no/file.json"), "--tokenizer is /no/file.json; must be a file"),
        ((*OPEN_CLIP, "--strip-prefix", "clip"), "--strip-prefix is clip; there is no --checkpoint"),
        ((*OPEN_CLIP, "--add-prefix", "clip"), "--add-prefix is clip; there is no --checkpoint"),
        (
            (*OPEN_CLIP, "--pretrained", "openai", "--checkpoint", "/"),
            "--pretrained is openai; there is a --checkpoint",
        ),
        (("--transformers", "/", "--pretrained", "openai"), "--pretrained is openai; only --open-clip takes it"),
        ((*OWN, "--force-quick-gelu"), "--force-quick-gelu is True; only --open-clip takes it"),
        ((*OPEN_CLIP, "--channels", 1), "--channels is 1; only --module needs it"),
        ((*OPEN_CLIP, "--max-tokens", 1), "--max-tokens is 1; only --module needs it"),
        ((*OPEN_CLIP, "--vocabulary", 1), "--vocabulary is 1; only --module needs it"),
        ((*OPEN_CLIP, "--logit-scale", "s"), "--logit-scale is s; only --module needs it"),
        ((*OPEN_CLIP, "--no-logit-scale-is-log"), "--logit-scale-is-log is False; only --module needs it"),
        ((*OPEN_CLIP, "--logit-bias", "b"), "--logit-bias is b; only --module needs it"),
        ((*OPEN_CLIP, "--loss", "sigmoid"), "--loss is sigmoid; only --module needs it"),
        ((*OPEN_CLIP, "--tokens-at", "t"), "--tokens-at is t; only --module needs it"),
        (("--module", "a:b", "--vocabulary", 9), "--max-tokens is missing; --module needs it"),
        (("--module", "a:b", "--max-tokens", 9), "--vocabulary is missing; --module needs it"),
        ((*OWN, "--max-tokens", 0), "--max-tokens is 0; must be 1 to"),
        ((*OWN, "--vocabulary", 0), "--vocabulary is 0; must be 1 to"),
        ((*OWN, "--channels", 2), "argument --channels: invalid choice: 2"),
        ((*OWN, "--loss", "triplet"), "argument --loss: invalid choice: 'triplet'"),
    ],
)
def test_a_wrong_value_is_one_line(arguments, said, tmp_path, capsys):
    assert export(*arguments, "--out", tmp_path / "B") == 2
    output = capsys.readouterr()
    assert output.err.startswith("selector export: ")
    assert said in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert not (tmp_path / "B").exists()


def test_a_bundle_that_exists_is_left_alone(tmp_path, capsys):
    assert export(*OPEN_CLIP, "--out", tmp_path) == 2
    assert capsys.readouterr().err == f"selector export: --out is {tmp_path}; must not exist yet\n"


def test_out_is_needed(capsys):
    assert export(*OPEN_CLIP) == 2
    assert "the following arguments are required: --out" in capsys.readouterr().err


def test_mistakes_are_found_without_torch(tmp_path):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'open_clip', 'transformers', 'pydantic')));"
        "from selector_tools.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "export", *OPEN_CLIP, "--out", str(tmp_path / "B")]
    wrong = subprocess.run([*command, "--seed", "-1"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (2, f"selector export: --seed is -1; must be 0 to {2**63 - 1}\n")
    missing = subprocess.run(command, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "pip install 'jest-selector[server,export]'" in missing.stderr


def test_every_flag_of_the_documentation_exists(capsys):
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    assert export("--help") == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) <= known


def test_a_tokenizer_and_special_tokens_of_ones_own(tmp_path, capsys):
    import transformers
    from support.model import write_tokenizer

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = small | {"vocab_size": 64, "max_position_embeddings": 6}
    vision = small | {"image_size": 8, "patch_size": 4}
    transformers.SiglipConfig(text_config=text, vision_config=vision).save_pretrained(tmp_path / "m")
    tokenizer = write_tokenizer(tmp_path / "own.json")
    flags = ("--tokenizer", tokenizer, "--pad-token", 5, "--end-token", 6, "--mean", "0.1,0.2,0.3", "--std", "0.7")
    more = ("--fit", "crop", "--name", "mine", "--licence", "CC-BY-4.0", "--precision", "bf16")
    assert export("--transformers", tmp_path / "m", *flags, *more, "--out", tmp_path / "B") == 0
    said = capsys.readouterr().out
    assert "model: mine, learner, width 8, bf16, sigmoid loss" in said
    assert "image: 8 x 8 x 3, crop, bicubic, mean 0.1,0.2,0.3, std 0.7" in said
    assert "pad token 5, end token 6, with tokenizer" in said
    assert "not compared with torch" in said
    assert "note" not in said
    assert (tmp_path / "B" / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    manifest = (tmp_path / "B" / "manifest.json").read_text()
    assert '"CC-BY-4.0"' in manifest
    assert "random weights (seed 0)" in manifest
    flags = ("--end-token", 64, "--out", tmp_path / "C")
    assert export("--transformers", tmp_path / "m", *flags) == 2
    assert "must be below the vocabulary, 64" in capsys.readouterr().err
    (tmp_path / "own.json").write_text("{}")
    assert export("--transformers", tmp_path / "m", "--tokenizer", tokenizer, "--out", tmp_path / "C") == 2
    [line] = capsys.readouterr().err.splitlines()  # before any work
    assert line.startswith(f"selector export: tokenizer is {tokenizer}; ")
