"""Tables of the server and of batch prediction with Ray."""

from .markdown import Result, plural, table


def serving(result: Result) -> str:
    """Format the speed of the server and its engine, and the responses under each load."""
    rows = [
        [name, phase["seconds"], ", ".join(f"{count:,} x {status}" for status, count in phase["responses"].items()),
         phase["wrong"], phase["lost"]]
        for name, phase in result["phases"].items()
    ]  # fmt: skip
    engine = " and ".join(str(rate) for rate in result["engine_images_per_second"])
    return (
        f"`{result['model']}` at {result['size']} px, {result['connections']} connections, batches of up to "
        f"{result['batch']}, {plural(result['threads'], 'thread')}: **{result['images_per_second']} images/s**; "
        f"the engine alone, before and after: {engine}; ratio {result['ratio']}. Resident memory during the load: "
        f"{', '.join(map(str, result['memory_mb']))} MB. Exit code after SIGTERM: {result['exit_code']}.\n\n"
        + table(["load", "seconds", "responses", "wrong", "lost"], rows)
    )


def ray_predict(result: Result) -> str:
    """Format what was predicted after a worker was killed."""
    return (
        f"{result['images']:,} images in {result['shards']} shards, {result['workers']} workers; "
        f"{result['killed']} killed after {result['shards_when_killed']} shards. Rows: **{result['rows']:,}**, "
        f"missing {result['missing']}, duplicates {result['duplicates']}; {result['seconds']} s, including the "
        "start of the workers."
    )


def fuzz_server(result: Result) -> str:
    """Format the responses by status, and the memory."""
    statuses: dict[str, int] = {}
    for kind, count in result["by_status"].items():
        status = kind.split()[1]
        statuses[status] = statuses.get(status, 0) + count
    rows: list[list[object]] = [[status, f"{count:,}"] for status, count in sorted(statuses.items())]
    memory = result["memory_mb"]
    generated = result["schemathesis"]
    lines = [line.strip() for line in generated["output"] if "generated" in line] if generated else []
    return (
        f"{table(['status', 'responses'], rows)}\n\n{result['requests']:,} requests in {result['seconds']} s, "
        f"{len(result['failures'])} of them with status 5xx, a malformed response or none. Resident memory "
        f"{memory['after 300']} MB after the first 300, {memory['end']} MB at the end."
        + "".join(f" schemathesis, no server error in: {line}." for line in lines)
    )
