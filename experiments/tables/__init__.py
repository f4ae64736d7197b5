"""The paper's tables: what their rows are, at which size they are run, and what was measured."""
