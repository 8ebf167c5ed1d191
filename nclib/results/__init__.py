"""One folder per result, named like its notebook: theory, experiments, nets, figures."""
