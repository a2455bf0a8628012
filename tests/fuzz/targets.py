"""What is fuzzed: each target makes a case from random numbers. A new format, option or route joins here."""

from __future__ import annotations

import itertools
import json
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import yaml
from cases import Case, unpacked
from fixture import CONFIG, RUN, Fixture
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from sandbox import ROOT

Random = random.Random
# Values that programs forget, as JSON, and those that JSON lacks, in the forms of `cases.decode`.
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, 2**70, -(2**70), 0.5, -0.0, 1e-300, 1e308),
    *(float("nan"), float("inf"), -float("inf"), "", " ", "x", "0", "-1", "nan", "null", "true", "\0", "é", "\ud800"),
    *("../decoy/text.txt", "/etc/shadow", "/**/nope", "~", "hf://a/b", "http://127.0.0.1:9/x", "text.txt", "{}", "[1"),
    *([], {}, [[]], [0], ["x"], [None], [1, 2, 3], {"": None}, {"x": {}}, {"class_path": "os.system"}, [1] * 999),
]
LONG: list[Any] = [{"$": ["deep"]}, {"$": ["repeat", "a", 100_000]}, {"$": ["repeat", "[", 5000]}]
HOSTILE: list[Any] = [
    *({"$": ["shared", 45]}, {"$": ["shared", 45]}, *LONG),
    *({"$": ["bytes", "00ff"]}, {"$": ["tuple", [1, 2]]}, {"$": ["set", [1]]}, {"$": ["code"]}),
    *({"$": ["tensor", [1], 0.0, "float32"]}, {"$": ["tensor", [8, 8], float("nan"), "float32"]}),
    *({"$": ["tensor", [8], 1, "int64"]}, {"$": ["tensor", [300, 1 << 20], 1.0, "float32"]}),
]
ARGUMENTS = [
    *("0", "1", "-1", "2", "0.5", "1.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e-300", "0x10", "1_000", "9" * 25),
    *("9" * 5000, "", " ", "x", "null", "true", "auto", "last", "best", "[]", "[1,2]", "{}", "{a: 1}", "[", "{", "-"),
    *("--", "=", "*", "&a [*a]", "!!python/name:os.system", "\udcff", "é", "a" * 5000, "\n", "text.txt", "model.ckpt"),
    *("lightning_logs", RUN, "hf", "tokenizer", "base.yaml", "missing", "text.txt/x", "/proc/1/x", "~x", "**/*"),
    *("http://127.0.0.1:9/x", "hf://a/b", "s3://a/b", "gpt2kit.optim.AdamW", "torch.optim.SGD", "os.system", "gpt2kit"),
    *("1h", "00:00:00:01", "char", "line", "file", "cpu", "gpu", "16", "bf16", "64", "1:2", "1/2", "gelu", "sdpa"),
    *("utf-16", "a:b", "10%"),
]
# Arguments with which a command does a little work. The last ones keep a valid command from running long.
BASE = {
    "train": (["--config", "base.yaml"], ["--trainer.max_time=20s"]),
    "test": (["model.ckpt", "--files", "text.txt"], []),
    "generate": (["model.ckpt", "--prompt", "the"], ["--max_new_tokens=3"]),
    "tokenize": (["text.txt", "--output_dir", "out"], []),
    "export": (["model.ckpt", "--output_dir", "out"], ["--dtype=float31"]),  # else a process loads what it wrote
    "plot": (["last"], []),
    "demo": (["model.ckpt"], ["--host=203.0.113.1"]),  # not an address of this machine
    "cache": ([], []),
    "runs": ([], []),
    "env": ([], []),
}
# Options that start other processes, and options of which each value may take long by design.
LEFT_OUT = ("verify_resume", "tune", "interactive", "show", "push_to_hub")
PIECES = ["\0", "\xff", "\xfe\xff", '"', "'", "\\", "{", "}", "[", "]", ",", ":", "\n", "\r", "-1", "1e999", "NaN"]
PIECES += ["null", "9" * 30, "<|endoftext|>", "../", "[" * 3000, "\xef\xbb\xbf", "&a ", "*a", "<<: ", "!!x "]


def drawn(chance: Random, strategy: st.SearchStrategy[Any]) -> Any:
    """Return one of hypothesis' values: its first ones are simple, so it is the last of some."""
    values: list[Any] = []
    phases = [Phase.generate]

    @seed(chance.getrandbits(64))
    @settings(max_examples=8, database=None, phases=phases, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def take(value: Any) -> None:
        values.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        take()
    return values[-1]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def odd(chance: Random, is_json: bool) -> Any:
    """Return a value that a file should not have."""
    roll = chance.random()
    return drawn(chance, PLAIN) if roll < 0.2 else chance.choice(ODD if roll > 0.4 else LONG if is_json else HOSTILE)


def keys(chance: Random, content: Any) -> list[Any]:
    """Return the keys that lead to a random place in nested containers."""
    path: list[Any] = []
    while True:
        content = unpacked(content)
        names = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
        if not names or (path and chance.random() < 0.15):
            return path
        path.append(chance.choice(names))
        content = content[path[-1]]


def change_structure(chance: Random, fixture: Fixture, name: str, *start: Any) -> list[Any]:
    """Return a change of a value in a structured file, below some keys."""
    content = fixture.content(name)
    for key in start:
        content = unpacked(content)[key]
    path = [*start, *keys(chance, content)]
    value = odd(chance, name.endswith((".json", ".safetensors")) or "tokenizer" in path[:-1])
    roll = chance.random()
    if roll < 0.2:
        return [name, "drop", path]
    if roll < 0.3:
        return [name, "set", [*path[:-1], chance.choice(["x", "", "auto_map", "__class__", 0])], value]
    return [name, "set", path, value]


def change_bytes(chance: Random, fixture: Fixture, name: str) -> list[Any]:
    """Return a change of a file's bytes."""
    size = fixture.size(name)
    start, roll = chance.randrange(size + 1), chance.random()
    if roll < 0.2:
        return [name, "splice", start, size, ""]  # truncated
    if roll < 0.3:
        return [name, "splice", start, chance.randrange(1, 200), ""]
    if roll < 0.4:
        return [name, "become", chance.choice(["missing", "folder", "pipe", "link"]), chance.choice(["missing", "."])]
    new = chance.choice(PIECES) if roll < 0.7 else "".join(chr(chance.randrange(256)) for _ in range(4))
    return [name, "splice", start, chance.choice([0, len(new)]), new]


def change_zip(chance: Random, fixture: Fixture, name: str) -> list[Any]:
    """Return a change of a checkpoint's zip archive."""
    action = chance.choice(["omit", "rename", "twice", "content", "deflate"])
    record = chance.choice(["data.pkl", "version", "byteorder", "data/0", "data/3", ".format_version"])
    return [name, "zip", action, record, chance.choice(["../x", "data.pkl", "", "x", "/tmp/x", "constants.pkl"])]


def changes(chance: Random, fixture: Fixture, name: str, *start: Any) -> list[list[Any]]:
    """Return one to three changes of a structured file."""
    makers = [change_structure] * 7 + [change_bytes] + [change_zip] * name.endswith((".ckpt", ".bin"))
    chosen = [chance.choice(makers) for _ in range(chance.choice([1, 1, 1, 2, 3]))]
    return [
        make(chance, fixture, name, *start) if make is change_structure else make(chance, fixture, name)
        for make in sorted(chosen, key=makers.index)
    ]


def use_model(chance: Random, path: str) -> list[str]:
    """Return the arguments of a command that opens a model."""
    return chance.choice(
        [
            ["generate", path, "--prompt", "the quick", "--max_new_tokens", "3"],
            ["generate", path, "--max_new_tokens", "3", "--json"],
            ["test", path, "--files", "text.txt"],
            ["test", path, "model.ckpt", "--max_tokens", "200"],
            ["test", path],
            ["train", "--config", "base.yaml", "--model.init_from", path, "--data.block_size=8"],
            ["demo", path, "--host=203.0.113.1"],
        ]
    )


def checkpoint(chance: Random, fixture: Fixture) -> Case:
    """A checkpoint from a stranger."""
    start = ["gpt2kit"] if chance.random() < 0.7 else []
    return Case("checkpoint", use_model(chance, "model.ckpt"), changes(chance, fixture, "model.ckpt", *start))


def resume(chance: Random, fixture: Fixture) -> Case:
    """A run that is resumed from a damaged checkpoint, or another stage of it."""
    name = chance.choice(["model.ckpt", fixture.checkpoint])
    path = chance.choice(["last", RUN]) if name != "model.ckpt" else name
    if chance.random() < 0.4:
        args = ["train", "text.txt", "--resume_with_new_text", path, "--replay=0.3", "--trainer.max_steps=2"]
    else:
        args = ["train", "--ckpt_path", path, "--trainer.max_steps=4"]
        args += ["--config", "base.yaml"] if name == "model.ckpt" else []
    edits = changes(chance, fixture, name)
    if name != "model.ckpt" and chance.random() < 0.9:
        edits.append([f"{name}.sha256", "become", "missing"])
    return Case("resume", args, edits)


def huggingface(chance: Random, fixture: Fixture) -> Case:
    """A Hugging Face folder from a stranger."""
    folder = chance.choice(["hf", "sharded", "bin"])
    files = [name for name in fixture.names if name.startswith(f"{folder}/")]
    name = chance.choice([name for name in files if name.endswith((".json", ".safetensors", ".bin"))])
    return Case("huggingface", use_model(chance, folder), changes(chance, fixture, name))


def foreign(chance: Random, fixture: Fixture) -> Case:
    """A checkpoint of another program from a stranger, or its vocabulary."""
    args = use_model(chance, "nanogpt.bin")
    is_training = args[0] == "train"
    args += ["--data.tokenizer" if is_training else "--tokenizer", "letters.json"]
    args += ["--model.n_layer=2", "--model.n_head=2"] if is_training else []
    return Case("foreign", args, changes(chance, fixture, chance.choice(["nanogpt.bin"] * 4 + ["letters.json"])))


def adapter(chance: Random, fixture: Fixture) -> Case:
    """An adapter of peft from a stranger."""
    args = use_model(chance, "adapter")
    args += [
        "--model.adapter_base" if args[0] == "train" else "--adapter_base",
        chance.choice(["hf"] * 9 + ["adapter"]),
    ]
    name = chance.choice(["adapter/adapter_config.json", "adapter/adapter_model.safetensors"])
    return Case("adapter", args, changes(chance, fixture, name))


# Valid parts of a tokenizer.json, which a tokenizer for GPT-2 does not have.
_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
PARTS: list[tuple[str, Any]] = [
    ("model", {"type": "WordLevel", "vocab": {"the": 0}, "unk_token": "<unk>"}),
    ("model", {"type": "WordPiece", "vocab": {"the": 0}, "unk_token": "?", "max_input_chars_per_word": 0}),
    ("model", {"type": "Unigram", "vocab": [["the", -1.0]], "unk_id": 7, "byte_fallback": True}),
    ("model", {"type": "BPE", "vocab": {}, "merges": []}),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "xx"}),
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 10_000}),
    ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 1000}] * 1000}),
    ("pre_tokenizer", {**_SPLIT, "pattern": {"Regex": "(a*)*b|(the|t|th)*$"}}),
    ("pre_tokenizer", {**_SPLIT, "pattern": {"Regex": "("}}),
    ("pre_tokenizer", {"type": "Metaspace", "replacement": "the", "prepend_scheme": "always"}),
    ("post_processor", {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}),
    ("decoder", {"type": "Strip", "content": "t", "start": 2**32, "stop": 2**32}),
    ("decoder", {"type": "Sequence", "decoders": []}),
    ("truncation", {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9}),
    ("padding", {"strategy": {"Fixed": 2**32}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}),
    ("added_tokens", [{"id": 2**32 - 1, "content": "the", "special": True}]),
]


def change_part(chance: Random, name: str, *start: Any) -> list[list[Any]]:
    """Return the change that gives a tokenizer another part."""
    key, part = chance.choice(PARTS)
    return [[name, "set", [*start, key], part]]


def tokenizer(chance: Random, fixture: Fixture) -> Case:
    """A tokenizer from a stranger: in a folder or in a checkpoint."""
    has_part = chance.random() < 0.4
    if chance.random() < 0.5:
        place = ("model.ckpt", "gpt2kit", "tokenizer")
        edits = change_part(chance, *place) if has_part else changes(chance, fixture, *place)
        return Case("tokenizer", use_model(chance, "model.ckpt"), edits)
    name = chance.choice(["tokenizer/tokenizer.json"] * 3 + ["tokenizer/tokenizer_config.json"])
    args = chance.choice(
        [
            ["train", "--config", "base.yaml", "--data.cache_dir=cache"],
            ["tokenize", "text.txt", "--report", "tokenizer"],
            ["tokenize", "text.txt", "--kind", "existing", "--vocab", "tokenizer", "--output_dir", "out"],
            ["tokenize", "text.txt", "--compare", "tokenizer", "300"],
        ]
    )
    if has_part:
        return Case("tokenizer", args, change_part(chance, "tokenizer/tokenizer.json"))
    return Case("tokenizer", args, changes(chance, fixture, name))


# What a title, a licence and the name of a page must not break out of.
MARKUP = [
    *(
        "</title><script>alert(1)</script>",
        "<!--",
        "]]>",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "&lt;",
        "\u202e",
        "\ud800",
        "\x1b[31m",
    ),
    *(
        "'sha256-x' *",
        '" onload="alert(1)',
        "</script><img src=x onerror=alert(1)>",
        "a" * 5000,
        "\u2028",
        "\r\n",
        "%s",
        "",
    ),
]


def page(chance: Random, fixture: Fixture) -> Case:
    """An HTML page of a model from a stranger, with a hostile title."""
    model = chance.choice(["model.ckpt"] * 3 + ["hf", "sharded", "adapter", "nanogpt.bin"])
    out = chance.choice(["out.html"] * 9 + ["text.txt", ".", "out/a/b.html", "</a>.html", "\n.html", "a" * 300])
    args = ["export", model, "--html", out, f"--html_dtype={chance.choice(['int8', 'int8', 'float16', 'float32'])}"]
    extra = {"adapter": ["--adapter_base=hf"], "nanogpt.bin": ["--tokenizer=letters.json"]}
    args += extra.get(model, [])
    if chance.random() < 0.5:
        title = drawn(chance, st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
        args.append(f"--html_title={chance.choice([*MARKUP, title])}")
    if chance.random() < 0.2:
        args += ["--license", chance.choice(["mit", *MARKUP])]
    args += ["--force"] * (chance.random() < 0.2)
    names = {"adapter": "adapter/adapter_model.safetensors", "nanogpt.bin": "letters.json"}
    start: list[str] = []
    if model == "model.ckpt":
        name, start = model, chance.choice([["gpt2kit", "tokenizer"], ["gpt2kit"], ["state_dict"], []])
    else:
        files = [file for file in fixture.names if file.startswith(f"{model}/") and file.endswith(".json")]
        name = names.get(model) or chance.choice(files)
    if chance.random() < 0.4 and model in ("model.ckpt", "hf"):
        place = ("model.ckpt", "gpt2kit", "tokenizer") if model == "model.ckpt" else ("hf/tokenizer.json",)
        return Case("page", args, change_part(chance, *place))
    return Case("page", args, [] if chance.random() < 0.1 else changes(chance, fixture, name, *start))


def vocabulary(chance: Random, fixture: Fixture) -> Case:
    """A vocabulary of another program, from a stranger."""
    name = chance.choice([name for name in fixture.names if name.startswith("old/")])
    folder = name.rpartition("/")[0]
    kind, vocab = ("char", name) if folder == "old/list" else ("existing", folder)
    if folder == "old/bert" and chance.random() < 0.5:
        kind, vocab = "wordpiece", name
    args = ["tokenize", "text.txt", "--kind", kind, "--vocab", vocab, "--output_dir", "out"]
    if kind == "existing" and chance.random() < 0.4:
        args = ["train", "--config", "base.yaml", "--data.cache_dir=cache", f"--data.tokenizer={vocab}"]
    if name.endswith(".json"):
        return Case("vocabulary", args, changes(chance, fixture, name))
    return Case("vocabulary", args, [change_bytes(chance, fixture, name) for _ in range(chance.choice([1, 1, 2, 5]))])


def options(verb: str) -> list[str]:
    """Return the names of a command's options, from docs/cli.md."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    script = re.search(rf"^\| `gpt2kit {verb}` \| `(.+?)`", page, re.MULTILINE)
    section = page.partition(f"\n## {script[1] if script else f'gpt2kit {verb}'}\n")[2].partition("\n## ")[0]
    unchanged = section.partition("Trainer unchanged: ")[2].partition("\n\n")[0]
    names = re.findall(r"^\| `(?:-\w, )?(?:--)?([\w.]+)", section, re.MULTILINE)
    names += [f"trainer.{name}" for name in re.findall(r"`(\w+)`", unchanged)]
    return [name for name in names if name not in LEFT_OUT]


def config(chance: Random, fixture: Fixture) -> Case:
    """A config file with odd values under known and unknown keys, or damaged text."""
    content: Any = json.loads(json.dumps(CONFIG))
    names = options("train")
    for _ in range(chance.choice([1, 1, 2, 5])):
        section, _, key = chance.choice(names).rpartition(".")
        value = drawn(chance, PLAIN) if chance.random() < 0.4 else yaml.safe_dump(chance.choice(ARGUMENTS))
        if isinstance(value, str) and chance.random() < 0.7:
            value = _parsed(value)
        place = content.setdefault(section, {}) if section else content
        if isinstance(place, dict):
            place[key if chance.random() < 0.9 else drawn(chance, st.text(max_size=9))] = value
    text = yaml.safe_dump(content, allow_unicode=True)
    for _ in range(chance.choice([0, 0, 0, 1, 3])):
        start = chance.randrange(len(text))
        text = text[:start] + chance.choice([*PIECES, LAUGHS, "  ", "- ", text]) + text[start + chance.choice([0, 9]) :]
    return Case("config", ["train", "--config", "odd.yaml", "--trainer.max_time=20s"], [["odd.yaml", "text", text]])


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghijk"))


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def command(chance: Random, fixture: Fixture) -> Case:
    """A command line with odd values, unknown options, and arguments that are missing."""
    verb = chance.choice([*BASE, *["train"] * 8, *["generate", "test", "tokenize"] * 2])
    first, last = BASE[verb]
    args, names = list(first), options(verb) or ["x"]
    for _ in range(chance.choice([1, 1, 2, 3])):
        name = chance.choice(names)
        if chance.random() < 0.1:
            name = chance.choice([name[:-1], f"{name}.x", f"{name}.class_path", f"no_{name}", name.upper()])
        roll, value = chance.random(), chance.choice(ARGUMENTS)
        if roll < 0.1:
            value = drawn(chance, st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])))
        args += [f"--{name}={value}"] if roll < 0.7 else [f"--{name}", value] if roll < 0.9 else [f"--{name}"]
    if chance.random() < 0.1:
        args.insert(chance.randrange(len(args) + 1), chance.choice(ARGUMENTS))
    return Case("command", [verb, *args, *last], [])


def text(chance: Random, fixture: Fixture) -> Case:
    """A damaged text in any format, through the reader, a tokenizer and the token store."""
    name = chance.choice([name for name in fixture.names if re.match(r"(text|latin)\.(?!.*/)", name)])
    if chance.random() < 0.3:
        edits = [[name, "text", drawn(chance, st.text() | st.lists(st.text(), min_size=5).map("\n".join))]]
    else:
        edits = [change_bytes(chance, fixture, name) for _ in range(chance.choice([1, 1, 2, 5]))]
    extra = []
    if chance.random() < 0.4:
        encodings = ["auto", "utf-8", "utf-16", "latin-1", "gb18030", "utf-7", "idna", "rot13", "x"]
        values = {"document": ["line", "file", "\n\n", " ", "x"], "field": ["text", "id", "x"], "encoding": encodings}
        values |= {"errors": ["strict", "replace", "skip"], "max_bad_fraction": ["0", "1"]}
        values |= {"min_chars": ["0", "9"], "max_documents": ["1", "0"]}
        values["drop_near_duplicates"] = ["0.5", "1", "0", "nan", "null", "[]"]
        option = chance.choice(list(values))
        extra = [f"reader.{option}={chance.choice(values[option])}"]
    elif chance.random() < 0.2:
        extra = ["reader.template={text}x", f"reader.loss_on={chance.choice(['text', 'id', '[]', '[text,text]', '3'])}"]
    action = chance.choice(["train", "tokenize", "test", "prompts"])
    if action == "train":
        extra = ["--config", "base.yaml", f"--data.train_files={name}", *(f"--data.{option}" for option in extra)]
        extra += chance.choice([[], ["--data.tokenizer=null"], ["--plan"]])
    elif action == "tokenize":
        extra = [name, "--output_dir=out", "--vocab_size=300", *(f"--{option}" for option in extra)]
        extra += ["--kind", chance.choice(["bpe", "char", "words", "wordpiece", "spm-bpe", "spm-unigram"])]
    elif action == "test":
        extra = ["model.ckpt", "--files", name, *(f"--{option}" for option in extra)]
    else:
        action, extra = "generate", ["model.ckpt", "--prompts_file", name, "--max_new_tokens=1"]
    return Case("text", [action, *extra], edits)


def texts(chance: Random, fixture: Fixture) -> Case:
    """Several texts with names, weights and readers, some of them odd."""

    def options() -> Any:
        if chance.random() < 0.3:
            return chance.choice(["text.txt", ["text.txt", "text.txt"], [], "missing", drawn(chance, PLAIN)])
        value: dict[str, Any] = {"files": chance.choice(["text.txt", ["text.txt"], "text.*", []])}
        for name, values in {
            "weight": [2, 0.1, 1e300, 5e-324, 0, -1, float("nan"), float("inf"), "x", [1]],
            "fraction": [0, 0.3, 0.9999, 1, -1, float("nan"), "x", None],
            "valid_fraction": [0, 0.2, 0.9999, 1, -1, float("inf"), "x", None],
            "reader": [
                {"document": "line"},
                {"document": "file"},
                {"min_chars": 10**6},
                {"encoding": "x"},
                {"document": "line", "drop_near_duplicates": 0.8},
                None,
                "x",
                3,
            ],
            "files": [3, {}, "../x"],
            "wieght": [1],
        }.items():
            if chance.random() < {"weight": 0.5, "reader": 0.5}.get(name, 0.1):
                value[name] = chance.choice(values)
        return value

    content: Any = json.loads(json.dumps(CONFIG))
    names = ["a", "b", "poems", "a b", "", "../a", "x" * 300, "total", "1", "é", "class_path", "init_args", "a.b", None]
    for split in ["train", *chance.choice([[], ["valid"], ["test"], ["valid", "test"]])]:
        chosen = chance.sample(names[: chance.choice([3, len(names)])], chance.choice([1, 2, 3]))
        content["data"][f"{split}_files"] = {name: options() for name in chosen}
        content["data"].pop(f"{split}_fraction", None)
    args = ["train", "--config", "odd.yaml", *chance.choice([[], ["--plan"], ["--best_text=a"]])]
    return Case("texts", args, [["odd.yaml", "text", yaml.safe_dump(content, allow_unicode=True)]])


def run(chance: Random, fixture: Fixture) -> Case:
    """A damaged folder of a run, or a damaged token store."""
    name = chance.choice([name for name in fixture.names if name.startswith((RUN, ".cache"))])
    structured = name.endswith((".json", ".yaml")) and chance.random() < 0.6
    maker = change_structure if structured else change_bytes
    args = chance.choice(
        [
            ["train", "--ckpt_path", "last", "--trainer.max_steps=4"],
            ["train", "text.txt", "--resume_with_new_text", "last", "--trainer.max_steps=2"],
            ["train", "--config", "base.yaml"],
            ["runs"],
            ["plot", "last"],
            ["plot", "last", "--report", "report.html"],
            ["test", "last"],
            ["generate", "last", "--max_new_tokens=2"],
            ["cache", *chance.choice([[], ["--verify"], ["--prune", "all"], ["--unused_for=0"]])],
        ]
    )
    return Case("run", args, [maker(chance, fixture, name) for _ in range(chance.choice([1, 1, 2]))])


def demo(chance: Random, fixture: Fixture) -> Case:
    """Requests to the web demo."""
    return Case("demo", [], [["", "send", _request(chance)] for _ in range(chance.choice([1, 1, 2, 4]))])


def _request(chance: Random) -> str:
    """Return an HTTP request in Latin-1."""
    inputs = ["version_0", "the", 5, 0.8, 0, 0.95, 1, 1, 1]
    inputs[chance.randrange(9)] = chance.choice(ODD)
    if chance.random() < 0.2:
        inputs = chance.choice([inputs[:3], [], [*inputs, 1], "x", None])  # type: ignore[assignment]
    body: Any = {"data": inputs, "fn_index": chance.choice([0, 0, 0, 1, 4, -1, 99]), "session_hash": "fuzz"}
    if chance.random() < 0.2:
        body |= {"data": [chance.choice(["version_0", "version_0", *ODD])], "fn_index": 8}  # prepares a page
    if chance.random() < 0.3:
        body[chance.choice([*body, "trigger_id", "event_id", "username"])] = chance.choice(ODD)
    raw = json.dumps(body)
    routes = ["/", "/config", "/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/queue/data?session_hash=fuzz"]
    routes += ["/gradio_api/file=/etc/passwd", "/gradio_api/run/predict", "/gradio_api/call/generate", "/x", "//"]
    routes += [
        "/static/../../etc/passwd",
        "/gradio_api/cancel",
        "/gradio_api/reset",
        "/login",
        "/%00",
        "/v1/completions",
    ]
    names = ["version_0", "version_0", "x", "", "..%2f0", "%ff", "%00", "version_0&name=x", "%0d%0aA:b", "a" * 9000]
    download = f"/model.html?name={chance.choice(names)}"
    route = chance.choice([*routes, *["/gradio_api/queue/join"] * 12, *[download] * 4])
    method = chance.choice(["GET", "HEAD", "PUT", "OPTIONS", "x"]) if chance.random() < 0.2 else ""
    method = method or ("POST" if re.search("join|cancel|reset|call|predict|login|v1", route) else "GET")
    if chance.random() < 0.15:
        start = chance.randrange(len(raw))
        raw = raw[:start] + chance.choice(PIECES) + raw[start + chance.randrange(5) :]
    headers = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(raw))}
    headers["Connection"] = "close"
    if chance.random() < 0.2:
        name = chance.choice(
            [*headers, "Origin", "Cookie", "Transfer-Encoding", "Expect", "X-Forwarded-Host", "Range", "If-Range"]
        )
        headers[name] = chance.choice(
            [
                "",
                "bytes=0-9",
                "bytes=9-1,-5,x",
                "bytes=" + "0-1," * 200,
                "x",
                "chunked",
                "0",
                "-1",
                "9" * 30,
                "http://x.example",
                "a" * 9999,
            ]
        )
    lines = [f"{method} {route} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    request = "\r\n".join(lines) + "\r\n\r\n" + (raw if method == "POST" else "")
    if chance.random() < 0.1:
        start = chance.randrange(len(request))
        request = request[:start] + chance.choice([*PIECES, ""]) + request[start + chance.randrange(20) :]
    return request


TARGETS: dict[str, Callable[[Random, Fixture], Case]] = {
    each.__name__: each
    for each in (
        checkpoint,
        resume,
        huggingface,
        foreign,
        adapter,
        tokenizer,
        vocabulary,
        config,
        command,
        text,
        texts,
        run,
        page,
        demo,
    )
}


def make(target: str, seed: int, number: int, fixture: Fixture) -> Case:
    """Return a case of a target: always the same one for a seed and a number."""
    return TARGETS[target](Random(f"{seed}/{target}/{number}"), fixture)
