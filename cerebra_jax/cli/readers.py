"""Python that runs an exported program, for its card. Each names the packages that it needs.

Those of tables and texts read FILE.preprocessing.json, and give the answers of `predict`.
"""

from __future__ import annotations

import json
from typing import Any

from cerebra_jax.config import RunCfg

PROGRAM = """# pip install jax flatbuffers
import numpy as np
from jax import export

with open("{name}", "rb") as file:
    run = export.deserialize(file.read())
batch = {{{batch}}}
print(run.call(batch))  # {output}, float32"""


TABLE = """# pip install jax flatbuffers
import json
import unicodedata
import numpy as np
from jax import export

with open("{name}", "rb") as file:
    run = export.deserialize(file.read())
with open("{name}.preprocessing.json", encoding="utf-8") as file:
    kept = json.load(file)["learnt"]


def clean(text):  # "" where it is a mark of a missing field
    text = unicodedata.normalize("NFC", text.strip())
    return "" if text.lower() in kept["marks"]["missing"] else text


def batch(rows):  # dicts of fields as text: decimal points, dates as days since 1970-01-01
    ids, values, first = [np.zeros(len(rows))], [np.ones(len(rows))], 1
    for name, c in kept["columns"].items():
        fields = [clean(row[name]) for row in rows]
        if c["kind"] == "category":
            place = {"": 1} | {text: i for i, text in enumerate(c["categories"], start=2)}
            own = [place.get(text) or place.get(text.removesuffix(".0"), 0) for text in fields]
            x = np.ones(len(rows))
        else:
            raw = np.array([float(text or "nan") for text in fields])
            own = np.isnan(raw)
            x = np.interp(raw, *c["points"]) if c["points"] else (raw - c["mean"]) / c["sd"]
        ids.append(first + np.array(own))
        values.append(np.where(np.isnan(x), 1, x))
        first += 2 + len(c.get("categories", ()))
    ids, values = np.stack(ids, 1), np.stack(values, 1)
    return {"inputs_BxL": ids.astype(np.int32), "values_BxL": values.astype(np.float32)}


rows = [{row}]
logits, target = np.asarray(run.call(batch(rows))), kept["target"]
if "classes" in target:
    print([target["classes"][i] for i in logits.argmax(1)])
else:  # in the target's unit
    y = logits[:, 0] * target["sd"] + target["mean"]
    scale = target.get("scale")
    if scale == "quantile":
        y = np.interp(y, *target["points"][::-1])
    y = np.exp(y) if scale == "log" else y
    print(y)"""

ONNX = """# pip install onnxruntime
import numpy as np
import onnxruntime

run = onnxruntime.InferenceSession("{name}")
batch = {{{batch}}}
print(run.run(None, batch)[0])  # {output}, float32"""

HEAD_TEXTS = """# pip install jax flatbuffers{packages}
import json
import numpy as np
{imports}
from jax import export

with open("{name}", "rb") as file:
    run = export.deserialize(file.read())
with open("{name}.preprocessing.json", encoding="utf-8") as file:
    kept = json.load(file)["learnt"]
{tokenizer}


def batch(texts):
    inputs = np.full((len(texts), kept["tokens"]), padding, np.int32)
    inputs[:, 0] = bos
    for row, text in zip(inputs, texts):
        tokens = encode(f" {text}")[: len(row) - 1]
        row[1 : 1 + len(tokens)] = tokens
    return {"inputs_BxL": inputs, "mask_BxL": inputs != padding}


texts = [""]
logits = np.asarray(run.call({call}))
print([kept["classes"][i] for i in logits.argmax(1)])"""

WORDS = """ids = {word: i for i, word in enumerate(json.loads(kept["tokenizer"]["json"]), start=1)}
bos, padding = len(ids) + 1, len(ids) + 2


def split(text):  # into words, by the rules of Unicode
    text = unicodedata.normalize("NFC", text.lower())
    cuts = [0, *(found.start() for found in regex.finditer(r"(?w)\\b", text)), len(text)]
    return [text[a:b] for a, b in zip(cuts, cuts[1:]) if text[a:b].strip()]


def encode(text):
    return [ids.get(word, 0) for word in split(text)]"""

SUBWORDS = """


def subwords(texts):  # numbers of the n-grams of each word
    found = np.full((len(texts), kept["tokens"], 24), -1, np.int32)
    for row, text in zip(found, texts):
        for numbers, word in zip(row[1:], split(text)):
            word = f"<{word}>"
            parts = [word[i : i + n] for n in (3, 4, 5) for i in range(len(word) - n + 1)][:24]
            for i, part in enumerate(parts):
                numbers[i] = padding + 1 + zlib.crc32(part.encode()) % kept["subwords"]
    return found"""

BPE = """tokenizer = Tokenizer.from_str(kept["tokenizer"]["json"])
bos, padding = kept["bos"], kept["padding"]


def encode(text):
    return tokenizer.encode(text, add_special_tokens=False).ids"""

BYTES = """bos, padding = kept["bos"], kept["padding"]


def encode(text):
    return list(text.encode())"""


def of(name: str, cfg: RunCfg, task: Any, batch: str, output: str) -> str:
    """Returns Python that runs a program and, of rows or texts as people have them, answers.

    batch, output: what it reads and gives, for tasks whose inputs are something else.
    """
    if cfg.task.name == "tabular":
        empty = json.dumps(dict.fromkeys(task.columns, ""), ensure_ascii=False)
        return TABLE.replace("{name}", name).replace("{row}", empty)
    if cfg.task.name == "intent" and not task.learnt()["before"]:
        return _of_texts(name, cfg)
    return PROGRAM.format(name=name, batch=batch, output=output)


def _of_texts(name: str, cfg: RunCfg) -> str:
    call = "batch(texts)"
    if cfg.task.tokenizer == "words":
        packages, imports, tokenizer = " regex", "import regex\nimport unicodedata", WORDS
        if cfg.task.subwords:
            imports += "\nimport zlib"
            tokenizer += SUBWORDS
            call += ' | {"subwords_BxLxG": subwords(texts)}'
    elif cfg.task.tokenizer == "bytes":
        packages, imports, tokenizer = "", "", BYTES
    else:
        packages, imports = " tokenizers", "from tokenizers import Tokenizer"
        tokenizer = BPE
    parts = {
        "packages": packages,
        "imports": imports,
        "tokenizer": tokenizer,
        "call": call,
        "name": name,
    }
    code = HEAD_TEXTS
    for key, text in parts.items():
        code = code.replace("{" + key + "}", text)
    return code.replace("\n\nfrom jax", "\nfrom jax") if not imports else code
