"""Rubrics by kind of request, as YAML; `srlm_pipeline.judging.kind_rubrics` reads and checks them."""
