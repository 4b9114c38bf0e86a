"""Format the results of the benchmarks as Markdown, by topic. Each function takes a result's JSON document."""
