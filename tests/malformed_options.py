"""Options that cannot be used: subjects, settings, seeds, outputs, roles, and wrong usage."""

from __future__ import annotations

from pathlib import Path

from malformed import BUILD, DEMO, EVALUATE, EXPORT, MOMENTS, NULL_SPACE, UNLEARN, Case, writes

NUMBERED = "expected a number from 1 to 2"

OPTIONS = [
    Case("unknown subject", UNLEARN.replace("anna", "zoe"), "--forget … unknown subject 'zoe' in folder:photos … anna"),
    Case(
        "unknown subject to leave out",
        MOMENTS.replace("--without anna", "--without zoe"),
        "--without … unknown subject 'zoe' … anna",
    ),
    Case(
        "unknown subject to hide",
        BUILD + " --without-images-of zoe",
        "--without-images-of … unknown subject 'zoe' … known subjects begin with",
    ),
    Case(
        "all subjects",
        EVALUATE.replace("anna", "anna,Bob,cleo_m"),
        "--forget names all 3 subjects … at least one must be left",
    ),
    Case("no subject", UNLEARN.replace("anna", ","), "--forget ',' … no subject given … expected names, @file"),
    Case("no list of subjects", EVALUATE.replace("anna", "@gone.txt"), "--forget @gone.txt … cannot read the file"),
    Case("first none", UNLEARN.replace("anna", "first:0"), f"--forget first:0 … {NUMBERED}"),
    Case("first of too many", EVALUATE.replace("anna", "first:9"), f"--forget first:9 … {NUMBERED}"),
    Case("first of a raised number", UNLEARN.replace("anna", "first:²"), f"--forget first:² … {NUMBERED}"),
    Case("first of very many", UNLEARN.replace("anna", "random:" + "9" * 5000), f"--forget random:999 … {NUMBERED}"),
    Case("first of a demo", DEMO + " --forget first:60", "--forget first:60 … expected a number from 1 to 59"),
    Case(
        "unknown setting", UNLEARN + " --set speed=3", "--set speed … no such setting … expected one of … learning_rate"
    ),
    Case(
        "setting of another type",
        UNLEARN.replace("steps=2", "steps=many"),
        "--set steps=many … expected a whole number",
    ),
    Case("setting out of range", UNLEARN.replace("steps=2", "steps=-1"), "--set steps=-1 … expected at least 0"),
    Case(
        "setting that is not a number",
        UNLEARN + " --set learning_rate=nan",
        "--set learning_rate=nan … expected more than 0",
    ),
    Case("setting given twice", UNLEARN + " --set steps=3", "--set steps … given twice … keep one"),
    Case("setting without a value", UNLEARN + " --set forget_weight", "--set forget_weight … expected key=value"),
    Case(
        "positives without hidden states",
        UNLEARN + " --set positives=transport --set features=blocks",
        "--set features=blocks … positives=transport has no hidden states … use tokens",
    ),
    Case("threshold of nothing", NULL_SPACE + " --set rule=soft --set threshold=0", "threshold … expected more than 0"),
    Case("unknown method", UNLEARN.replace("cvf", "magic"), "--method magic … expected one of nscvf"),
    Case("unknown method of a demo", DEMO + " --method magic", "--method magic … expected one of nscvf"),
    Case("unknown family", BUILD + " --family gpt", "--family gpt … expected one of llava"),
    Case("unknown family of a demo", DEMO + " --family gpt", "--family gpt … expected one of llava"),
    Case("blocks the tower lacks", UNLEARN + " --set last_blocks=99", "last_blocks=99 … expected 0 to 3"),
    Case("blocks the tower lacks, moments", MOMENTS + " --last-blocks -1", "last_blocks=-1 … expected 0 to 3"),
    Case("seed that is no number", UNLEARN + " --seed ten", "--seed … unsee unlearn --help"),
    Case("seed out of range", EVALUATE + " --seed 4294967296", "--seed … 4294967295"),
    Case("negative seed", DEMO + " --seed -1", "--seed … unsee demo --help"),
    Case("unknown option", MOMENTS + " --fast", "--fast … unsee moments fit --help"),
    Case("unknown command", "forget --out runs/new", "forget … unsee --help"),
    Case(
        "missing option", EXPORT.replace("--data photos", ""), "Missing option '--data' … unsee benchmark export --help"
    ),
    Case("nothing to report on", "report", "Missing argument … unsee report --help"),
    Case("output that exists", writes(UNLEARN, "model"), "--out model: exists … --overwrite"),
    Case(
        "output that exists, export",
        EXPORT.replace("runs/new.parquet", "table.parquet"),
        "--out table.parquet: exists … --overwrite",
    ),
    Case("output that exists, results", writes(EVALUATE, "results"), "--out results: exists … --overwrite"),
    Case(
        "output that is a file",
        writes(UNLEARN, "letter.txt --overwrite"),
        "--out letter.txt: is a file … expected a folder",
    ),
    Case(
        "output that is a folder", writes(MOMENTS, "photos --overwrite"), "--out photos: is a folder … expected a file"
    ),
    Case("output inside a file", writes(EVALUATE, "letter.txt/new"), "--out letter.txt/new … is a file, not a folder"),
    Case(
        "output inside the model", writes(UNLEARN, "model/new"), "--out model/new … inside model … choose another place"
    ),
    Case(
        "output inside an evaluated model",
        writes(EVALUATE, "model/new"),
        "--out model/new … inside model … choose another place",
    ),
    Case(
        "output inside the pictures",
        writes(EXPORT, "photos/new"),
        "--out photos/new.parquet … inside photos … choose another place",
    ),
    Case(
        "output that is not unsee's",
        EXPORT.replace("runs/new.parquet", "letter.txt --overwrite"),
        "--out letter.txt … not written by unsee",
    ),
    Case(
        "output that cannot be written",
        writes(UNLEARN, "locked/new"),
        "--out locked/new … locked cannot be written to",
        lambda: Path("locked").mkdir(mode=0o500),
    ),
    Case("export to csv", EXPORT.replace("new.parquet", "new.csv"), "--out runs/new.csv … ends in .parquet"),
    Case("model without a role", EVALUATE.replace("vanilla=", ""), "--model model … expected ROLE=PATH"),
    Case(
        "role without a model", EVALUATE.replace("vanilla=model", "vanilla="), "--model vanilla= … expected ROLE=PATH"
    ),
    Case("role that is no word", EVALUATE.replace("vanilla", "../up"), "--model ../up=model … letters, digits"),
    Case("role given twice", EVALUATE + " --model vanilla=qwen", "--model vanilla=qwen … 'vanilla' is given twice"),
]
