"""Exported files, and the server. One function per benchmark: its JSON as Markdown."""

from .markdown import Found, counted, table


def deployment(found: Found) -> str:
    """Every side at 224 px, and the ratios."""
    rows = [
        [
            row["name"], row["batch"], f"{1e3 * row['latency']:.1f}", f"{1e3 * row['p95']:.1f}",
            f"{row['images_per_second']:.1f}", f"{1e3 * row['first']:.0f}", f"{row['memory'] / 1e6:.0f}",
            "" if row["file_bytes"] is None else f"{row['file_bytes'] / 1e6:.1f}", f"{row['share']:.0%}",
        ]
        for row in found["rows"]
    ]  # fmt: skip
    head = [
        "",
        "batch",
        "median ms",
        "p95 ms",
        "images/s",
        "first answer, ms",
        "memory, MB",
        "file, MB",
        "of a product",
    ]
    r, versions = found["ratios"], found["versions"]
    kept = ", ".join(r["left_in_float32"]) or "none"
    return (
        f"{table(head, rows)}\n\n"
        f"- float32: {r['float32']} takes **{r['float32_to_peer']}** of the time of the best peer ({r['peer']}) with "
        f"the same weights, **{r['float32_to_product']}** of the time of a matrix product with as many "
        "multiplications;\n"
        f"- int8: {r['int8']} is **{r['peer_to_int8']}** times as fast as that peer and loses "
        f"**{r['top1_lost']:.4f}** of top-1 ({r['top1']:.4f} to {r['top1_int8']:.4f} on {r['images']:,} test "
        f"pictures); layers left in float32: {kept};\n"
        f"- torchvision's network in plain PyTorch takes **{r['eager_to_float32']}** times as long as our float32, "
        f"**{r['eager_to_int8']}** times as long as our int8.\n\n"
        f"224 px, {counted(found['threads'], 'thread')}, {found['rounds']} rounds of "
        f"{found['seconds'] / found['rounds']:g} s, each side a process of its own; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}; "
        f"{found['cpu_capability']}."
    )


def export_parity(found: Found) -> str:
    """The largest difference by member and engine."""
    engines = ["onnxruntime", "openvino", "ncnn", "torch"]

    def said(row: Found, engine: str) -> str:
        value = row.get(engine)
        return f"{value:.1e}" if isinstance(value, float) else "cannot be written"

    rows = [[f"`{row['name']}`", *(said(row, engine) for engine in engines)] for row in found["rows"]]
    whole = ", ".join(f"{name} {value:.1e}" for name, value in found["all"].items())
    return (
        f"{table(['member', *engines], rows)}\n\nRaw bytes against `Preprocess` and the network on "
        f"{found['pictures']:,} test pictures: {whole}. torch {found['torch']}."
    )


def serving(found: Found) -> str:
    """The server beside its engine, and what became of every request."""
    rows = [
        [name, phase["seconds"], ", ".join(f"{count:,} x {status}" for status, count in phase["answers"].items()),
         phase["wrong"], phase["lost"]]
        for name, phase in found["phases"].items()
    ]  # fmt: skip
    engine = " and ".join(str(rate) for rate in found["engine_pictures_per_second"])
    return (
        f"`{found['model']}` at {found['size']} px, {found['connections']} connections, batches of at most "
        f"{found['batch']}, {counted(found['threads'], 'thread')}: **{found['pictures_per_second']} pictures/s**; "
        f"the engine alone, before and after, {engine}: a ratio of {found['ratio']}. Resident memory along the load: "
        f"{', '.join(map(str, found['memory_mb']))} MB. Exit code after SIGTERM: {found['exit_code']}.\n\n"
        + table(["load", "seconds", "answers", "wrong", "lost"], rows)
    )


def ray_predict(found: Found) -> str:
    """What became of every picture."""
    return (
        f"{found['pictures']:,} pictures in {found['parts']} parts, {found['workers']} workers; "
        f"{found['killed']} killed when {found['parts_when_killed']} parts were done. Rows: **{found['rows']:,}**, "
        f"missing {found['missing']}, twice {found['twice']}; {found['seconds']} s, with the workers' start."
    )


def hostile(found: Found) -> str:
    """How many requests, what they were answered, what the memory did."""
    statuses: dict[str, int] = {}
    for kind, count in found["by_status"].items():
        statuses[kind.split()[1]] = statuses.get(kind.split()[1], 0) + count
    rows: list[list[object]] = [[status, f"{count:,}"] for status, count in sorted(statuses.items())]
    memory = found["memory_mb"]
    outside = found["schemathesis"]
    counted = [line.strip() for line in outside["said"] if "generated" in line] if outside else []
    return (
        f"{table(['status', 'answers'], rows)}\n\n{found['requests']:,} requests in {found['seconds']} s, "
        f"{len(found['problems'])} of them answered 5xx, in another shape, or not at all. Resident memory "
        f"{memory['after 300']} MB after the first 300, {memory['at the end']} MB at the end."
        + "".join(f" schemathesis, no server error in: {line}." for line in counted)
    )
