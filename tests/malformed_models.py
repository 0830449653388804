"""Checkpoints, stored statistics and results that cannot be used."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from malformed import (
    ASCENT,
    EVALUATE,
    MOMENTS,
    NULL_SPACE,
    QWEN,
    REPORT,
    SECOND,
    STORED,
    UNLEARN,
    Case,
    both,
    copy,
    cut,
    drop,
    edit,
    edits,
    lose,
    put,
    rebuilt,
    sharded,
    text_only,
    weights,
    with_siglip,
    with_two_layers,
)

MODEL, SHARD, CONFIG = "model/model.safetensors", "model/one.safetensors", "model/config.json"
INDEX, TEMPLATE, MANIFEST = "model/model.safetensors.index.json", "model/chat_template.jinja", "model/unsee.json"
TOWER = "vision_tower.encoder.layers.0.mlp.fc1.weight"
LAST = "multi_modal_projector.linear_2.weight"
STAYS, LAYER = "stays.safetensors", "model.multi_modal_projector.linear_1"
BLIND = "{{ messages[0]['content'][-1]['text'] }}"  # a template that writes the question alone
RESULTS, ANSWERS = "results/results.json", "results/predictions/vanilla.jsonl"

CHECKPOINTS = [
    Case("no such model", edits(UNLEARN, "./gone"), "--model ./gone … no such folder"),
    Case("file as model", edits(UNLEARN, "letter.txt"), "letter.txt … expected a checkpoint"),
    Case("model that no hub gives", edits(UNLEARN, "owner/name"), "--model owner/name … hub did not give it"),
    Case("empty folder", UNLEARN, "model: no config.json … save_pretrained", both(lose("model"), put("model/.x", ""))),
    Case("no config.json", MOMENTS, "model: no config.json … save_pretrained", lose(CONFIG)),
    Case("config.json is no JSON", UNLEARN, f"{CONFIG} … not a usable configuration", put(CONFIG, "{]")),
    Case("config.json is a list", UNLEARN, f"{CONFIG} … not a usable configuration", put(CONFIG, "[]")),
    Case("config.json is no text", EVALUATE, f"{CONFIG} … not a usable configuration", put(CONFIG, b"\xff\xfe\x00")),
    Case("unknown model type", EVALUATE, f"{CONFIG} … novel", edit(CONFIG, model_type="novel")),
    Case("text-only model", UNLEARN, f"{CONFIG} … model_type 'llama' is not supported … llava", text_only),
    Case(
        "impossible sizes",
        UNLEARN,
        f"{CONFIG} … not a usable configuration",
        edit(CONFIG, vision_config={"num_attention_heads": 3}),
    ),
    Case(
        "impossible sizes, evaluated",
        EVALUATE,
        f"{CONFIG} … not a usable configuration",
        edit(CONFIG, vision_config={"num_attention_heads": 3}),
    ),
    Case("another vision tower", UNLEARN, f"{CONFIG} … siglip … clip_vision_model", rebuilt(with_siglip)),
    Case("another vision tower, evaluated", EVALUATE, f"{CONFIG} … siglip … clip_vision_model", rebuilt(with_siglip)),
    Case("several feature layers", MOMENTS, f"{CONFIG} … vision_feature_layer=[-2, -1]", rebuilt(with_two_layers)),
    Case(
        "only pickled weights",
        UNLEARN,
        "model: no model.safetensors … convert … pickle is not read",
        lambda: Path(MODEL).rename("model/pytorch_model.bin"),
    ),
    Case("truncated weights", MOMENTS, f"{MODEL} … not a readable safetensors file", cut(MODEL, 100_000)),
    Case("weights of zero bytes", UNLEARN, f"{MODEL} … not a readable safetensors file", put(MODEL, b"")),
    Case(
        "absurd header length",
        EVALUATE,
        f"{MODEL} … not a readable safetensors file",
        put(MODEL, struct.pack("<Q", 1 << 60) + b"{}"),
    ),
    Case(
        "index names a missing shard",
        UNLEARN,
        "model/second.safetensors … missing",
        sharded({LAST: "second.safetensors"}),
    ),
    Case(
        "index names a file outside",
        EVALUATE,
        f"{INDEX} … '../table.parquet' … expected a file in this folder",
        sharded({LAST: "../table.parquet"}),
    ),
    Case("index is no JSON", UNLEARN, f"{INDEX} … not a safetensors index", sharded(index="{")),
    Case("index without a map", UNLEARN, f"{INDEX} … weight_map", sharded(index="{}")),
    Case(
        "index whose map is a list",
        MOMENTS,
        f"{INDEX} … not a safetensors index",
        sharded(index='{"weight_map": ["one"]}'),
    ),
    Case(
        "index names a tensor its shard lacks",
        UNLEARN,
        f"{SHARD} … {LAST}",
        both(sharded(), weights(SHARD, lambda t: t.pop(LAST))),
    ),
    Case(
        "lacking tensor",
        UNLEARN,
        f"model: its weights hold nothing for … {LAST}",
        weights(MODEL, lambda t: t.pop(LAST)),
    ),
    Case(
        "lacking tensor, second model",
        SECOND,
        "model: its weights hold nothing … 'lm_head.weight'",
        weights(MODEL, lambda t: [t.pop(key) for key in list(t) if key.endswith("lm_head.weight")]),
    ),
    Case(
        "adapter beside full weights",
        UNLEARN,
        "model/adapter_config.json: an adapter beside full weights … merge it",
        put("model/adapter_config.json", "{}"),
    ),
    Case(
        "two names of one tensor",
        EVALUATE,
        f"model: 'model.{LAST}' and '{LAST}' are both … keep one of them",
        weights(MODEL, lambda t: t.update({f"model.{LAST}": t[LAST].clone()})),
    ),
    Case(
        "adapters that are not merged",
        MOMENTS,
        "model: tensor … lora_A.weight' … merge it",
        weights(MODEL, lambda t: t.update({"language_model.lm_head.lora_A.weight": torch.ones(2)})),
    ),
    Case(
        "tensor of another shape",
        UNLEARN,
        f"{LAST} … shape [16, 8] … config.json asks [16, 16]",
        weights(MODEL, lambda t: t.update({LAST: torch.zeros(16, 8)})),
    ),
    Case(
        "quantised tensor",
        UNLEARN,
        f"{LAST} … stored as I8 … only float weights",
        weights(MODEL, lambda t: t.update({LAST: torch.zeros(16, 16, dtype=torch.int8)})),
    ),
    Case(
        "statistics of a quantised tensor",
        MOMENTS,
        f"{TOWER} … stored as I8 … only float weights",
        weights(MODEL, lambda t: t.update({TOWER: torch.zeros(48, 16, dtype=torch.int8)})),
    ),
    Case("no tokenizer", UNLEARN, "model: its processor does not load", lose("model/tokenizer.json")),
    Case("broken tokenizer", EVALUATE, "model: its processor does not load", put("model/tokenizer.json", "{}")),
    Case(
        "no pad token",
        UNLEARN,
        "model/tokenizer_config.json: no pad_token",
        drop("model/tokenizer_config.json", "pad_token"),
    ),
    Case(
        "broken processor",
        UNLEARN,
        "model/processor_config.json: its processor does not load … double quotes",
        put("model/processor_config.json", "{"),
    ),
    Case(
        "processor is a list",
        MOMENTS,
        "model/processor_config.json: its processor does not load … expected a JSON object",
        put("model/processor_config.json", "[1]"),
    ),
    Case(
        "no image processor",
        QWEN,
        "qwen: its processor does not load … preprocessor_config.json",
        lose("qwen/processor_config.json"),
    ),
    Case(
        "image processor of another family",
        QWEN,
        "qwen: its processor makes no image_grid_thw … take the processor files of the same model",
        copy("model/processor_config.json", "qwen/processor_config.json"),
    ),
    Case(
        "tokenizer without the image token",
        EVALUATE,
        f"{CONFIG} … the image token is 7 … '<image>' as 4 … correct",
        edit(CONFIG, image_token_index=7),
    ),
    Case(
        "chat template that is no template",
        EVALUATE,
        "model: its chat template does not work … end of statement block … correct it",
        put(TEMPLATE, "{% for %}"),
    ),
    Case(
        "chat template without pictures",
        EVALUATE,
        "'<image>' 0 times for 1 picture … chat template of model",
        put(TEMPLATE, BLIND),
    ),
    Case(
        "chat template without pictures, ascent",
        ASCENT,
        "'<image>' 0 times for 1 picture … chat template of model",
        put(TEMPLATE, BLIND),
    ),
    Case(
        "chat template of the second model",
        SECOND,
        "model: its chat template does not work … no attribute 'nobody'",
        put(TEMPLATE, "{{ messages.nobody.nothing }}"),
    ),
    Case("unsee.json is no JSON", UNLEARN, "model/unsee.json … not valid JSON … delete it", put(MANIFEST, "{")),
    Case("unsee.json is a list", EVALUATE, "model/unsee.json … expected a JSON object", put(MANIFEST, "[]")),
    Case(
        "unsee.json without its base",
        UNLEARN,
        "model/unsee.json … 'base' lacks sha256 … delete it",
        put(MANIFEST, '{"base": {"model": "x"}}'),
    ),
    Case("unsee.json of a second model", SECOND, "model/unsee.json … not valid JSON", put(MANIFEST, "{")),
    Case(
        "moments of another model",
        STORED,
        "stays.safetensors … another model than model … fit them again",
        weights(MODEL, lambda t: t[LAST].add_(1)),
    ),
    Case(
        "moments that are no safetensors",
        STORED,
        "stays.safetensors … not a readable safetensors",
        put(STAYS, "letter"),
    ),
    Case("moments that are not there", STORED, "stays.safetensors … no such file … unsee moments fit", lose(STAYS)),
    Case(
        "moments that are a model",
        NULL_SPACE + f" --moments {MODEL}",
        f"{MODEL} … not a moments file … unsee moments fit",
    ),
    Case(
        "moments without a layer",
        STORED,
        "stays.safetensors … no layer 'model.multi_modal_projector.linear_1' … fit it again",
        weights(STAYS, lambda t: t.pop(f"{LAYER}.total")),
    ),
    Case(
        "moments of no tokens",
        STORED,
        "stays.safetensors … model.multi_modal_projector.linear_1' is damaged or of no tokens … fit it again",
        weights(STAYS, lambda t: t.update({f"{LAYER}.tokens": torch.tensor(0)})),
    ),
    Case(
        "moments that are not square",
        STORED,
        "stays.safetensors … model.multi_modal_projector.linear_1' is damaged … fit it again",
        weights(STAYS, lambda t: t.update({f"{LAYER}.total": torch.ones(3, 16)})),
    ),
    Case(
        "moments for a method without",
        UNLEARN + " --moments stays.safetensors",
        "--moments stays.safetensors … cvf does not use … leave it out",
    ),
]

REPORTS = [
    Case("report on nothing", "report gone", "gone/results.json … not found … unsee evaluate"),
    Case("report on pictures", "report photos", "photos/results.json … not found … unsee evaluate"),
    Case("results that are no JSON", REPORT, f"{RESULTS} … cannot be read as JSON … again", cut(RESULTS)),
    Case("results that are a list", REPORT, f"{RESULTS} … expected a JSON object", put(RESULTS, "[]")),
    Case("results without provenance", REPORT, f"{RESULTS} … 'provenance' … again", drop(RESULTS, "provenance")),
    Case("results without a model", REPORT, f"{RESULTS} … holds no model's scores", drop(RESULTS, "vanilla")),
    Case(
        "score that is a text",
        REPORT,
        f"{RESULTS} … vanilla.forget.test",
        edit(RESULTS, vanilla={"forget": {"test": "good"}}),
    ),
    Case("lost answers", REPORT, "results/predictions/vanilla.jsonl … not found", lose(ANSWERS)),
    Case("broken answers", REPORT, "results/predictions/vanilla.jsonl: row 1 … not JSON", cut(ANSWERS, 9)),
    Case("broken map", REPORT, "results/features.json … expected 'points'", put("results/features.json", "{}")),
    Case("lost picture", REPORT, "results/pictures/00.png … cannot be read", lose("results/pictures/00.png")),
]
