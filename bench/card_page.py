"""The page of `bench.card`, from the content of its JSON file."""

from __future__ import annotations

from typing import Any

GOALS = {"mfu": 0.55, "decoding": 3.0, "forecast": 8}
COUNTED = """\
Operations are counted after appendix B of the PaLM paper: for each token 6 for each weight of a
matrix, and 12 × layers × width × length for attention. A frozen weight needs no gradient of its own,
so LoRA has to compute 4 for each weight: **MFU** counts these, and *6N* is the figure of the paper's
formula. The embedding and the adapter are not counted, nor is anything that is computed again by
gradient checkpointing. 100 % is the product of two square matrices in bfloat16 as measured here.
Tokens are real ones, without padding; rows are between half as long as said and that long.
"""


def write_page(document: dict[str, Any]) -> str:
    results, machine = document["results"], document["machine"]
    parts = [f"# {'A rehearsal of `bench/card.sh` on a CPU' if results['rehearsal'] else 'A card'}", ""]
    if results["rehearsal"]:
        parts += [
            "**No GPU was used.** A tiny model went through the whole script on a CPU, so that the script is",
            "known to work. Its figures say nothing about any GPU, and no card has been tried so far. Shares of",
            "the peak mean nothing here: it is that of bfloat16, and most CPUs compute faster in float32.",
            "",
        ]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    card = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in results["card"].items())
    parts += [
        f"{document['date']} · {card or 'no card'} · {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']} {machine['architecture']}, Python {machine['python']}",
        "",
        f"{versions}.",
        f"The model: {results['model']}, random weights. All of it took {results['seconds']:.0f} s.",
        "",
    ]
    parts += _write_training(results["ladder"]) + _write_decoding(results["ladder"])
    if "tests" in results:
        parts += _write_tests(results["tests"])
    return "\n".join(parts).rstrip() + "\n"


def _write_training(ladder: dict[str, Any]) -> list[str]:
    peak = ladder.get("peak of matrix products", {}).get("cockpit", {})
    told = (
        peak.get("error") or f"{_number(peak.get('tflops'))} TFLOP/s, two matrices of {peak.get('size')}² in bfloat16"
    )
    parts = [
        "## Training",
        "",
        f"The measured peak: {told}.",
        f"The goal: at least {GOALS['mfu']:.0%} MFU for bf16 LoRA at the longest rows, and forecasts within "
        f"{GOALS['forecast']} % of the",
        "peak. Both are of what is allocated, and do not count how the base is made.",
        "",
    ]
    heads = ("what", "side", "tokens/s", "MFU", "6N", "peak memory", "forecast", "cockpit is", "rounds")
    parts += [COUNTED, _row([*heads]), "|---" * len(heads) + "|"]
    longest = next((name for name in ladder if name.startswith("bf16 LoRA")), "")  # they come first
    for name, sides in ladder.items():
        if name.startswith(("peak", "decoding")):
            continue
        for side, figures in sides.items():
            cells = [name, side + _describe_attention(figures)]
            if "error" in figures:
                parts.append(_row([*cells, f"failed: {figures['error']}", "", "", "", "", "", ""]))
                continue
            memory, ratio = figures.get("peak_gb"), figures.get("cockpit_is_times")
            goal = f" (goal {GOALS['mfu']:.0%})" if (side, name) == ("cockpit", longest) else ""
            cells += [_number(figures["tokens_per_second"]), _share(figures.get("mfu")) + goal]
            cells.append(_share(figures.get("mfu_palm")))
            cells += [f"{memory:.1f} GB" if memory else "–", _describe_forecast(figures)]
            cells += [f"{ratio:.2f}×" if ratio else "", _count_rounds(figures)]
            parts.append(_row(cells))
    return [*parts, ""]


def _write_decoding(ladder: dict[str, Any]) -> list[str]:
    parts = [
        "## Decoding",
        "",
        "Tokens a second, the prompt's reading included. The goal: "
        f"{GOALS['decoding']:.0f}× what `generate` of transformers does",
        "on the same model.",
        "",
    ]
    parts += ["| what | cockpit | generate | ratio |", "|---|---|---|---|"]
    for name, sides in ladder.items():
        if not name.startswith("decoding"):
            continue
        figures = sides["cockpit"]
        if "error" in figures:
            parts.append(_row([name, f"failed: {figures['error']}", "", ""]))
        else:
            ratio = f"{figures['ratio']:.2f}× (goal {GOALS['decoding']:.0f}×)"
            parts.append(_row([name, _number(figures["ours"]), _number(figures["generate"]), ratio]))
    return [*parts, ""]


def _write_tests(tests: dict[str, Any]) -> list[str]:
    parts = ["## Tests", ""]
    if "passed" in tests:
        counts = ", ".join(f"{tests[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
        parts.append(f"{counts}, in {tests['seconds']:.0f} s.")
    if "error" in tests:
        parts.append(f"They did not end by themselves: {tests['error']}.")
    parts += ["", "| test | outcome | seconds | why |", "|---|---|---|---|"]
    for name, each in tests.get("tests", {}).items():
        parts.append(_row([name, each["outcome"], f"{each['seconds']:.1f}", each.get("reason", "")]))
    return parts


def _count_rounds(figures: dict[str, Any]) -> str:
    failed = figures.get("failed_rounds", [])
    return str(figures["rounds"]) + (f", and failed: {'; '.join(failed)}" if failed else "")


def _describe_attention(figures: dict[str, Any]) -> str:
    more = [figures["attention"]] if "attention" in figures else []
    more += ["gradient checkpointing, as it did not fit without"] if figures.get("gradient_checkpointing") else []
    return f" ({', '.join(more)})" if more else ""


def _describe_forecast(figures: dict[str, Any]) -> str:
    if "forecast_error" in figures:
        return f"failed: {figures['forecast_error']}"
    if "forecast_gb" not in figures:
        return ""
    size, error = f"{figures['forecast_gb']:.3g} GB", figures.get("forecast_error_percent")
    return size if error is None else f"{size} ({error:+.1f} %)"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
