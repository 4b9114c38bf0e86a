"""Tables of exported files: speed and parity."""

from .markdown import Result, plural, table


def deployment(result: Result) -> str:
    """Format the speed and accuracy of every target with default settings and in float32, and the speedups."""
    header = ["network, engine", "computed in", "batch", "median ms", "p95 ms", "images/s", "memory, MB", "top-1"]
    blocks = []
    for settings, title in (("default", "Default settings of each library"), ("float32", "float32, the same threads")):
        rows = [
            [
                row["name"], row["precision"], row["batch"], f"{1e3 * row['latency']:.1f}", f"{1e3 * row['p95']:.1f}",
                f"{row['images_per_second']:.1f}", f"{row['memory'] / 1e6:.0f}",
                "" if row["top1"] is None else f"{row['top1']:.4f}",
            ]
            for row in result["rows"] if row["settings"] == settings
        ]  # fmt: skip
        blocks.append(f"{title}:\n\n{table(header, rows)}")
    blocks.append("\n".join(
        f"- Batch {row['batch']}: {row['name']} is **{row['ratio']:.2f}** times as fast as the fastest peer with "
        f"default settings, {row['peer']} ({row['low']:.2f} to {row['high']:.2f} over the rounds)."
        for row in result["speedups"]
    ))  # fmt: skip
    cpu, size = result["cpu"], result["rows"][0]["size"]
    threads = next((row["threads"] for row in result["rows"] if row["threads"]), 0)
    limit = f", limited to {result['limit_isa'].upper()} except in ONNX Runtime and ncnn" if result["limit_isa"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    blocks.append(
        f"{size} px; {cpu['model']}, {plural(cpu['cores'], 'core')}, with {', '.join(cpu['features'])}{limit}; float32 "
        f"with {plural(threads, 'thread')}; {result['rounds']} rounds of {result['seconds'] / result['rounds']:g} s, "
        f"each target in its own process; accuracy on {result['images']:,} test images; "
        f"torch {result['torch']}, {versions}."
    )
    return "\n\n".join(blocks)


def export_parity(result: Result) -> str:
    """Format the largest difference by network and engine."""
    names = ["onnxruntime", "openvino", "ncnn", "torch"]

    def format_error(row: Result, engine: str) -> str:
        value = row.get(engine)
        return f"{value:.1e}" if isinstance(value, float) else "not supported"

    rows = [[f"`{row['name']}`", *(format_error(row, name) for name in names)] for row in result["rows"]]
    test_set = ", ".join(f"{name} {value:.1e}" for name, value in result["test_set"].items())
    return (
        f"{table(['network', *names], rows)}\n\nRaw pixels compared with `Preprocess` and the network on "
        f"{result['images']:,} test images: {test_set}. torch {result['torch']}."
    )
