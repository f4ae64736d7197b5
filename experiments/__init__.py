"""The paper's tables: rows, scales, runs, results and the pages made of them. Not installed with the library."""
