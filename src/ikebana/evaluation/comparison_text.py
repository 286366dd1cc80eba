"""A comparison as text for the terminal, in 80 columns."""

import re
import textwrap

from ikebana.evaluation.comparison import Comparison, Contestant, Difference, PairComparison

COLUMNS = 80
MAX_NAME_COLUMNS = 24
MAX_PAIRED_NAME_COLUMNS = 15
# A forecast beyond this says only that the difference is tiny.
MAX_FORECAST_PHOTOS = 1_000_000


def format_comparison(comparison: Comparison) -> str:
    """Format contestants, the differences of all pairs, and what they mean."""
    blocks = [describe_photos(comparison), _format_contestants(comparison.contestants)]
    if len(comparison.pairs) == 1:
        blocks.append(describe_pair(comparison.pairs[0]))
    elif comparison.pairs:
        blocks.append(_format_pairs(comparison.pairs))
    elif len(comparison.contestants[0].runs) > 1:
        blocks.append(_format_runs(comparison.contestants[0]))
    blocks += [_format_splits(pair) for pair in comparison.pairs if pair.by_split]
    blocks += comparison.notes
    return "\n\n".join(map(_wrap, blocks))


def _wrap(block: str) -> str:
    return "\n".join(line if len(line) <= COLUMNS else _fill(line) for line in block.splitlines())


def _fill(line: str) -> str:
    """Wrap a line, but not within "p = 0.012"."""
    bound = re.sub(r"\bp ([=<]) ", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", line)
    return textwrap.fill(bound, COLUMNS).replace("\N{NO-BREAK SPACE}", " ")


def summarise(comparison: Comparison) -> str:
    """Say in one sentence what the comparison shows."""
    if not comparison.pairs:
        return f"Accuracy of {comparison.contestants[0].name}"
    if len(comparison.pairs) == 1:
        (pair,) = comparison.pairs
        if pair.verdict == "tie":
            return f"{pair.second} and {pair.first}: a tie"
        return f"{pair.second} is {pair.verdict} than {pair.first}"
    best = max(comparison.contestants, key=lambda contestant: contestant.accuracy).name
    rivals = [
        pair.first if pair.second == best else pair.second
        for pair in comparison.pairs
        if best in (pair.first, pair.second) and pair.verdict == "tie"
    ]
    if not rivals:
        return f"{best} is better than the others"
    others = f"{', '.join(rivals[:-1])} and {rivals[-1]}" if len(rivals) > 1 else rivals[0]
    return f"{best} has the highest accuracy, and ties with {others}"


def describe_pair(pair: PairComparison) -> str:
    """Say in a sentence which contestant is better, or that the photos cannot tell."""
    numbers = f"{format_points(pair.difference)}, {format_p_value(pair.p_value)}"
    if pair.verdict != "tie":
        return f"{pair.second} is {pair.verdict} than {pair.first}: {numbers}"
    splits = f" of {len(pair.by_split)} splits" if pair.by_split else ""
    tie = f"{pair.second} and {pair.first}: tie on these {pair.difference.n:,} photos{splits}: {numbers}"
    return "\n".join(filter(None, (tie, describe_need(pair))))


def describe_need(pair: PairComparison) -> str:
    """Say how many photos would tell the contestants apart; "" if that is unknown."""
    if pair.photos_needed is None:
        return "" if pair.difference.value else "no difference was seen"
    is_tiny = pair.photos_needed > MAX_FORECAST_PHOTOS
    count = f"more than {MAX_FORECAST_PHOTOS:,}" if is_tiny else f"about {pair.photos_needed:,}"
    return f"{count} test photos would be needed to tell, if the difference is really that large"


def format_points(difference: Difference) -> str:
    """Format a difference of accuracies in percentage points, with its interval."""
    low, high = difference.interval
    return f"{_sign(difference.value)} points ({_sign(low)} to {_sign(high)})"


def _sign(share: float) -> str:
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def format_p_value(p_value: float) -> str:
    """Format a p-value with at most three digits, such as p = 0.012."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def describe_photos(comparison: Comparison) -> str:
    """Say how many runs are compared or scored on which photos."""
    runs = sum(len(contestant.runs) for contestant in comparison.contestants)
    splits = comparison.splits
    if len(splits) == 1:
        photos = f"the same {next(iter(splits.values())):,} test photos"
    else:
        photos = f"{len(splits)} splits, on the same test photos per split ({sum(splits.values()):,} together)"
    if comparison.pairs:
        return f"{runs} runs compared on {photos}"
    count = f"{runs} run{'s' * (runs != 1)}"
    where = f"{len(splits)} splits, " if len(splits) > 1 else ""
    return f"{count} on {where}{sum(splits.values()):,} test photos{' together' if where else ''}"


def _format_contestants(contestants: tuple[Contestant, ...]) -> str:
    width = min(MAX_NAME_COLUMNS, max(4, *(len(contestant.name) for contestant in contestants)))
    has_spread = any(len(contestant.accuracies) > 1 for contestant in contestants)
    lines = [f"{'':<{width}}  runs  accuracy  95% interval    {'single runs' if has_spread else ''}"]
    for contestant in contestants:
        low, high = contestant.accuracy_interval
        spread = ""
        if len(contestant.accuracies) > 1:
            spread = f"  {min(contestant.accuracies):.3f} to {max(contestant.accuracies):.3f}"
        lines.append(
            f"{_shorten(contestant.name, width):<{width}}  {len(contestant.runs):>4}  {contestant.accuracy:>8.3f}  "
            f"{low:.3f} to {high:.3f}{spread}"
        )
    return "\n".join(line.rstrip() for line in lines)


def _format_pairs(pairs: tuple[PairComparison, ...]) -> str:
    """Format one line per pair: difference, corrected p-value, verdict."""
    names = [
        f"{_shorten(pair.second, MAX_PAIRED_NAME_COLUMNS)} - {_shorten(pair.first, MAX_PAIRED_NAME_COLUMNS)}"
        for pair in pairs
    ]
    width = max(map(len, names))
    lines = [f"{'difference in points':<{width}}                          p  verdict"]
    for name, pair in zip(names, pairs, strict=True):
        low, high = pair.difference.interval
        p_value = "<0.001" if pair.p_value < 0.001 else f"{pair.p_value:.3f}"
        lines.append(
            f"{name:<{width}}  {_sign(pair.difference.value):>5} ({_sign(low):>5} to {_sign(high):>5})  "
            f"{p_value:>6}  {_format_verdict(pair)}"
        )
    legend = "p is corrected for all pairs (Holm). In brackets: test photos that would be needed to tell."
    return "\n".join([*lines, "", legend])


def _format_verdict(pair: PairComparison) -> str:
    if pair.verdict != "tie" or pair.photos_needed is None:
        return pair.verdict
    return f"tie ({'>1M' if pair.photos_needed > MAX_FORECAST_PHOTOS else f'{pair.photos_needed:,}'})"


def _format_splits(pair: PairComparison) -> str:
    width = max(len(difference.name) for difference in pair.by_split)
    rows = [f"  {difference.name:<{width}}  {format_points(difference)}" for difference in pair.by_split]
    return "\n".join([f"{pair.second} - {pair.first}, split by split:", *rows])


def _format_runs(contestant: Contestant) -> str:
    """Format the accuracy of each run, where there is no other contestant."""
    rows = zip(contestant.runs, contestant.accuracies, strict=True)
    return "\n".join(["accuracy per run:", *(f"  {accuracy:.3f}  {folder}" for folder, accuracy in rows)])


def _shorten(name: str, width: int) -> str:
    """Cut out the middle of a name that is too long."""
    if len(name) <= width:
        return name
    start = (width - 1) // 2
    return f"{name[:start]}…{name[len(name) - (width - 1 - start) :]}"
