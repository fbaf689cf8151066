"""The pipeline as it is, but that all steps of a run share its process.

A step of its own process spends most of its time on loading libraries, where models are tiny.
"""

import dagster as dg

import srlm_pipeline.definitions as as_it_is

defs = dg.Definitions(
    assets=as_it_is.defs.assets,
    jobs=as_it_is.defs.jobs,
    schedules=as_it_is.defs.schedules,
    sensors=as_it_is.defs.sensors,
    resources=as_it_is.defs.resources,
    executor=dg.in_process_executor,
)
