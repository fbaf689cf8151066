-- POSTGRES_DB is Dagster's; this one is MLflow's.
CREATE DATABASE mlflow;
