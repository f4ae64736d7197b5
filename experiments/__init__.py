"""The paper's tables: rows, scales, runs, result files, and the pages made from them. Not installed."""
