-- What is live beside what a build made of the same events; used by comparing.py.
-- {live} and {built} are two tables of the same columns; d is a row of either. A key's columns are compared as they
-- are, so that the tables can be hashed or merged; everything else as JSON, since any type can be told apart so.

-- name: next_boundary(low text, most bigint) :one
-- The key so many rows beyond low, on the side where it comes first, as JSON. No row: there are fewer on both.
SELECT to_jsonb(f)::text AS boundary
  FROM ((SELECT {key_columns} FROM {live} d WHERE {beyond_low} ORDER BY {key_columns} OFFSET $2 LIMIT 1)
         UNION ALL
        (SELECT {key_columns} FROM {built} d WHERE {beyond_low} ORDER BY {key_columns} OFFSET $2 LIMIT 1)) f
 ORDER BY {key_columns_of_f}
 LIMIT 1;

-- name: count_differences(low text, high text, tenant text, keys text[]) :one
-- Rows of either side beyond low up to high, and those that are not the same in both. NULL: no limit, of all tenants,
-- all keys.
SELECT count(*) AS checked, count(*) FILTER (WHERE l.content IS DISTINCT FROM b.content) AS differing
  FROM (SELECT {columns}, to_jsonb(d) - {names} AS content FROM {live} d
         WHERE {beyond_low} AND {up_to_high}
           AND ($3::text IS NULL OR {tenant} = $3) AND ($4::text[] IS NULL OR {key} = ANY ($4))) l
  FULL JOIN (SELECT {columns}, to_jsonb(d) - {names} AS content FROM {built} d
         WHERE {beyond_low} AND {up_to_high}
           AND ($3::text IS NULL OR {tenant} = $3) AND ($4::text[] IS NULL OR {key} = ANY ($4))) b
    ON {same};

-- name: list_differences(low text, high text, tenant text, keys text[], most bigint, longest integer) :many
-- The first of them with both sides, which are cut where they are longer than that.
SELECT coalesce(l.tenant, b.tenant) AS tenant, coalesce(l.key, b.key) AS key,
       CASE WHEN l.content IS NULL THEN 'missing' WHEN b.content IS NULL THEN 'extra' ELSE 'differs' END AS kind,
       left(l.content::text, $6) AS live, left(b.content::text, $6) AS rebuilt
  FROM (SELECT {columns}, {tenant} AS tenant, {key} AS key, to_jsonb(d) - {names} AS content FROM {live} d
         WHERE {beyond_low} AND {up_to_high}
           AND ($3::text IS NULL OR {tenant} = $3) AND ($4::text[] IS NULL OR {key} = ANY ($4))) l
  FULL JOIN (SELECT {columns}, {tenant} AS tenant, {key} AS key, to_jsonb(d) - {names} AS content FROM {built} d
         WHERE {beyond_low} AND {up_to_high}
           AND ($3::text IS NULL OR {tenant} = $3) AND ($4::text[] IS NULL OR {key} = ANY ($4))) b
    ON {same}
 WHERE l.content IS DISTINCT FROM b.content
 ORDER BY {order}
 LIMIT $5;

-- name: count_unlike_rows() :one
-- Of tables without a key: each row counts as often as it stands there.
SELECT coalesce(sum(greatest(c.live, c.built)), 0)::bigint AS checked,
       coalesce(sum(abs(c.live - c.built)), 0)::bigint AS differing
  FROM (SELECT count(*) FILTER (WHERE r.is_live) AS live, count(*) FILTER (WHERE NOT r.is_live) AS built
          FROM (SELECT to_jsonb(d) AS content, true AS is_live FROM {live} d
                 UNION ALL
                SELECT to_jsonb(d), false FROM {built} d) r
         GROUP BY r.content) c;

-- name: list_unlike_rows(most bigint, longest integer) :many
-- The first of them. A changed row is one that is extra and one that is missing.
SELECT '' AS tenant, '' AS key, CASE WHEN c.live > c.built THEN 'extra' ELSE 'missing' END AS kind,
       CASE WHEN c.live > c.built THEN left(c.content::text, $2) END AS live,
       CASE WHEN c.live < c.built THEN left(c.content::text, $2) END AS rebuilt
  FROM (SELECT r.content, count(*) FILTER (WHERE r.is_live) AS live, count(*) FILTER (WHERE NOT r.is_live) AS built
          FROM (SELECT to_jsonb(d) AS content, true AS is_live FROM {live} d
                 UNION ALL
                SELECT to_jsonb(d), false FROM {built} d) r
         GROUP BY r.content) c
 WHERE c.live <> c.built
 ORDER BY c.content::text
 LIMIT $1;
