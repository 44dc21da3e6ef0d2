-- Run once, when the volume is new: an application's database with a knowledge base of 5,000 random points to try.
CREATE DATABASE app;
\connect app
CREATE EXTENSION vector;
CREATE TABLE handbook (id bigint PRIMARY KEY, embedding vector(128) NOT NULL, payload jsonb NOT NULL);
SELECT setseed(0.5);
INSERT INTO handbook
SELECT n, array_agg((random() * 2 - 1)::real ORDER BY d)::vector(128), jsonb_build_object('title', 'Page ' || n, 'page', n)
FROM generate_series(1, 5000) AS n, generate_series(1, 128) AS d
GROUP BY n;
CREATE INDEX ON handbook USING hnsw (embedding vector_cosine_ops);
