"""Writes the table of measurements into README.md: `make readme-table RESULTS='bench.json quick.json'`.

Of several files the first that has a cell counts; all must come from one machine with one version of everything. Every
cell of ROWS that was measured is shown, and every other one that torch won; then what `oxistep bench compact`
measured of fewer bytes, beside torch's AdamW in float32, which has no such settings.

From the table follow the ranges in docs/performance.md, and the headline ("2 to 10 times faster") of README.md and
docs/index.md: all are written anew.
"""

import json
import re
import sys
from pathlib import Path

BEGIN, END = "<!-- measured: begin (make readme-table) -->\n", "<!-- measured: end -->"
TORCH = ("for-loop", "foreach", "fused")  # what a user of torch.optim has without compiling
NARROW = "\N{NO-BREAK SPACE}"  # a number and its unit stay on one line
LOST = 0.97  # as in the benchmark's floors: below this it is no noise

# workload, its name in the table, cells: optimizer, or optimizer and dtype
ROWS = [
    ("two_scalars", "two scalars", ["SGD", "Adam"]),
    ("mlp", "MLP 784-256-128-10", ["Adam"]),
    ("lora", "192 LoRA matrices", ["SGD", "Adam"]),
    ("small_2000", "2,000 tensors of 64", ["SGD", "Adam"]),
    ("embedding", "4,096 rows of an embedding, 1 M x 64", ["SparseAdam", "Adagrad"]),
    ("resnet50", "ResNet-50", ["Adam"]),
    ("gpt2_small", "GPT-2 small", ["Adam", "clip + Adam", "max_grad_norm Adam"]),
    ("flat_16", "one tensor of 16 Mi", ["SGD", "RMSprop", "Adam", "Adam bfloat16"]),
    ("flat", "one tensor of 128 Mi", ["SGD", "RMSprop", "Adam", "Adam bfloat16", "Adam float16"]),
]
NAMES = {
    "clip + Adam": "clip_grad_norm_ and Adam",
    "no clip + Adam": "clip_grad_norm_, nothing to clip, and Adam",
    "max_grad_norm Adam": "Adam with `max_grad_norm=`",
}
UNUSUAL = {  # families of workloads, of three sizes, and one workload: shown where torch won
    "sliced_columns": "columns of a larger matrix",
    "second_rows": "every second row of a matrix",
    "second_columns": "every second column of a matrix",
    "transposed_gradient": "a transposed gradient",
    "channels_last_gradient": "only the gradient channels_last",
    "channels_last_parameter": "only the parameter channels_last",
    "left_to_torch": "a subclass that sees every function, left to torch",
}
FEWER = [  # settings of AdamW, on one tensor of 128 Mi
    'state_dtype="8bit"',
    "state_dtype=torch.bfloat16",
    'weights="residual16", state_dtype=torch.float32',
    'weights="residual16", state_dtype="8bit"',
]
RANGES = ("<!-- ranges: begin (make readme-table) -->\n", "<!-- ranges: end -->")
HEADLINE = re.compile(r"\d+ to \d+( |\n)times(\s)faster")
# what a model is like, what dominates its step, the rows of the table that show it, and whether the headline counts it
KINDS = [
    ("a few scalars, adapters, many small tensors", "fixed cost", r"(two scalars|192 LoRA|2,000 tensors).*", True),
    ("embeddings with sparse gradients", "finding and copying rows", r".*rows of an embedding.*", True),
    ("half-precision parameters", "memory bandwidth", r"one tensor.*\| \w+, all \w*float16 .*", True),
    (
        "hundreds of megabytes, an optimizer without a fused kernel in torch",
        "memory bandwidth, because torch makes many passes",
        r"one tensor[^|]*\| \w+ \|.*\((for-loop|foreach)\).*",
        True,
    ),
    ("small layers that fit into the caches", "fixed cost and arithmetic", r"MLP.*", False),
    (
        "hundreds of megabytes in float32, an optimizer with a fused kernel in torch",
        "memory bandwidth",
        r"(ResNet|GPT|one tensor)[^|]*\| \w+ \|.*\(fused\).*",
        False,
    ),
]
SAME = ("cpu", "cores", "threads", "torch", "oxistep", "python")  # of the environment


def read(paths):
    """The environment and the measured cells by workload and label."""
    contents = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    where = contents[0]["environment"]
    for path, content in zip(paths, contents, strict=True):
        if differs := [key for key in SAME if content["environment"][key] != where[key]]:
            sys.exit(f"{path} was measured with another {', '.join(differs)} than {paths[0]}: measure again")
    cells = {}
    for content in contents:
        for cell in content["cells"]:
            if any(peer in cell.get("ratios", {}) for peer in TORCH):
                label = cell["optimizer"] + ("" if cell["dtype"] == "float32" else f" {cell['dtype']}")
                cells.setdefault((cell["workload"], label), cell)
        for label, cell in fewer_bytes(content).items():
            cells.setdefault(("flat", label), cell)
    return where, cells


def fewer_bytes(content):
    """What was measured of FEWER, as cells by label."""
    measured = [row for row in content.get("compact", {}).get("speed", []) if row["elements"] == 2**27]
    cells = {}
    for setting in FEWER:
        rows = [row for row in measured if row["setting"] == setting and row["against"].startswith("torch, ")]
        if rows:
            kept = "" if rows[0]["dtype"] == "float32" else f" {rows[0]['dtype']} parameters,"
            cells[f"AdamW,{kept} `{setting}`"] = {
                "nanoseconds": {"oxistep": rows[0]["own_ns"]},
                "ratios": {row["against"].removeprefix("torch, "): {"median": row["median"]} for row in rows},
                "beside": ", float32",
            }
    return cells


def best(cell):
    """The ratio to the best of torch's implementations, and which that is."""
    return min((cell["ratios"][peer]["median"], peer) for peer in TORCH if peer in cell["ratios"])


def times(ratio):
    return f"{ratio:.{0 if ratio >= 9.95 else 1 if ratio >= 1.95 else 2}f}×"


def duration(nanoseconds):
    unit, size = next((u, s) for u, s in (("ms", 1e6), ("µs", 1e3), ("ns", 1)) if nanoseconds >= s / 10 or s == 1)
    number = nanoseconds / size
    return f"{number:.{0 if number >= 9.95 else 1 if number >= 0.95 else 2}f}{NARROW}{unit}"


def row(title, label, cell):
    optimizer, _, dtype = label.rpartition(" ") if label.endswith(("16", "64")) else (label, "", "")
    name = NAMES.get(optimizer, optimizer) + (f", all {dtype}" if dtype else "")
    ratio, peer = best(cell)
    default = times(cell["ratios"]["for-loop"]["median"]) if "for-loop" in cell["ratios"] else "–"
    mark = " !" if (cell.get("other_cores") or 0) > 0.1 else ""
    ours = duration(cell["nanoseconds"]["oxistep"]) + mark
    peer += cell.get("beside", "")
    return f"| {title} | {name} | {ours} | {times(ratio)} ({peer}) | {default} |".replace("|  |", "| |", 1)


def title_of(workload):
    """Also of the sweeps: `size_24` is one tensor of 2**24 elements, `tensors_30` are thirty of 64."""
    titles = {name: title for name, title, _ in ROWS}
    family, _, number = workload.rpartition("_")
    if workload not in titles and family == "size":
        return f"one tensor of {size(int(number))}"
    if workload not in titles and family == "tensors":
        return f"{int(number):,} tensors of 64"
    if family in UNUSUAL:
        return f"{UNUSUAL[family]}, {number}"
    return titles.get(workload) or UNUSUAL.get(workload) or workload.replace("_", " ")


def size(exponent):
    """2**exponent elements, as people write it."""
    unit, power = next((u, p) for u, p in ((" Mi", 20), (" Ki", 10), ("", 0)) if exponent >= p)
    return f"{2 ** (exponent - power):,}{unit}"


def table(where, cells):
    threads = f"{where['threads']} threads on {where['cores']} cores"
    versions = f"torch {where['torch']}, oxistep {where['oxistep']}, {where['date'][:10]}"
    lines = [
        f"{where['cpu']}, {threads}, {versions}.",
        "",
        "| workload | optimizer | oxistep | speed-up over torch's fastest | over torch's default |",
        "| --- | --- | --- | --- | --- |",
    ]
    shown = set()
    for workload, title, labels in ROWS:
        for label in labels:
            if cell := cells.get((workload, label)):
                lines.append(row("" if title is None else title, label, cell))
                shown.add((workload, label))
                title = None
    titles = {workload: title for workload, title, _ in ROWS}
    for (workload, label), cell in cells.items():
        if "beside" in cell:
            title = "" if any(key[0] == workload for key in shown) else titles[workload]
            lines.append(row(title, label, cell))
            shown.add((workload, label))
    lost = [key for key, cell in cells.items() if key not in shown and best(cell)[0] < LOST]
    lines += [row(title_of(key[0]), key[1], cells[key]) for key in lost]
    if any(" ! |" in line for line in lines):
        lines += ["", "! other processes took more than a tenth of a core meanwhile"]
    return lines


def speedups(lines):
    """For each of KINDS the speed-ups over torch's fastest in the rows of the table, as they stand there."""
    title, found = "", {kind[0]: [] for kind in KINDS}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and (ratio := re.match(r"([\d.]+)×", cells[3])):
            title = cells[0] or title
            row = f"{title} | {cells[1]} | {cells[3]} "
            for name, _, pattern, _ in KINDS:
                if re.fullmatch(pattern, row):
                    found[name].append(ratio[1])
    return found


def ranges(lines):
    """The table of docs/performance.md, without kinds of which nothing was measured."""
    made = ["| model | dominated by | speed-up over torch's fastest |", "| --- | --- | --- |"]
    for (name, dominated, _, _), found in zip(KINDS, speedups(lines).values(), strict=True):
        least, most = min(found, key=float, default=None), max(found, key=float, default=None)
        if found:
            made.append(f"| {name} | {dominated} | {least if least == most else f'{least} to {most}'} |")
    return made


def headline(lines):
    """The range over all kinds that it counts, in whole numbers; nothing if none was measured."""
    numbers = [float(x) for kind, found in zip(KINDS, speedups(lines).values(), strict=True) if kind[3] for x in found]
    return f"{min(numbers):.0f} to {max(numbers):.0f}" if numbers else None


def between(marks, text, lines):
    """A text with other lines between two marks."""
    before, rest = text.split(marks[0])
    _, after = rest.split(marks[1])
    return before + marks[0] + "\n".join(lines) + "\n" + marks[1] + after


def main(paths, readme):
    rows, readme = table(*read(paths)), Path(readme)
    performance, index = readme.parent / "docs" / "performance.md", readme.parent / "docs" / "index.md"
    pages = {readme: between((BEGIN, END), readme.read_text(encoding="utf-8"), rows)}
    if performance.exists():
        pages[performance] = between(RANGES, performance.read_text(encoding="utf-8"), ranges(rows))
    if index.exists():
        pages[index] = index.read_text(encoding="utf-8")
    for page, text in pages.items():
        if (said := headline(rows)) and page != performance:
            text = HEADLINE.sub(rf"{said}\1times\2faster", text)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: readme_table.py RESULTS.json ... README.md")
    main(sys.argv[1:-1], sys.argv[-1])
