"""What ``x2l demo`` prints: a few lines a question, then how one of them was answered, and what to try next."""

from __future__ import annotations

from dataclasses import asdict

from x2l_cluster.cli.demo import Demo, Told
from x2l_cluster.cli.show import emit, err, explained, line, record
from x2l_cluster.cli.text import share, size, stretch
from x2l_cluster.types import Tier


def told(item: Told, *, as_json: bool) -> None:
    """One question of the demo; JSON waits for the end."""
    if as_json:
        return
    answer, usage = item.answer, item.answer.usage
    hot = sum(evidence.size_bytes for evidence in answer.evidence if evidence.tier is Tier.DEVICE)
    line(f"{'✓' if item.right else '✗'} {item.question}", style="green" if item.right else "red")
    line(f"    answer    {' '.join(answer.text.split()) or '(nothing)'}")
    line(f"    expected  {item.expected}")
    line(f"    evidence  {item.video} {', '.join(stretch(e.span) for e in answer.evidence) or '(coarse gist only)'}")
    line(
        f"    KV        {size(usage.reload_bytes)} loaded{f', {size(hot)} were still there' if hot else ''}; "
        f"a full cache is {size(usage.full_bytes)} ({share(usage.moved_share)} loaded, "
        f"{share(usage.kv_share)} of its entries resident)"
    )


def ended(played: Demo, *, as_json: bool) -> None:
    """What follows the last question."""
    if as_json:
        emit(
            {
                "right": played.right,
                "asked": len(played.told),
                "seconds": round(played.seconds, 1),
                "found": asdict(played.found) if played.found else None,
                "questions": [
                    {"kind": t.kind, "expected": t.expected, "right": t.right} | record(t.question, t.answer)
                    for t in played.told
                ],
            }
        )
    else:
        line()
        line("How one of them was answered:")
        explained(played.best.question, played.best.answer, as_json=False)
        line()
        if played.found is not None:
            line("The same question as a search through both videos, without an answer:")
            for moment in played.found.moments:
                line(f"    {moment.video} {stretch(moment.span)}  score {moment.score:+.2f}")
            line()
        line(f"{played.right} of {len(played.told)} right in {played.seconds:.0f} s", style="bold")
        line("Try your own question; bring the service up again, and in another terminal ask:")
        line(f"  x2l up --data {played.service}")
        line(f'  x2l explain footage "{played.next.question}" --url http://127.0.0.1:8421')
    if not played.good:
        err.print(
            f"the demo failed: {played.right} of {len(played.told)} answers are right", style="red", soft_wrap=True
        )
