--
-- install.sql: what CREATE EXTENSION has made, and to whom it belongs.
--
SELECT extname, extversion, extrelocatable, extnamespace::regnamespace FROM pg_extension WHERE extname = 'evpg';
SELECT evpg_version();

-- every public object has a comment; row types of tables and array types are members since PostgreSQL 17
CREATE VIEW member AS
  SELECT d.classid, d.objid, i.type, i.identity, obj_description(d.objid, c.relname) AS comment
    FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid AND d.refclassid = 'pg_extension'::regclass
     AND d.deptype = 'e'
    JOIN pg_class c ON c.oid = d.classid, pg_identify_object(d.classid, d.objid, 0) i
   WHERE e.extname = 'evpg'
   AND NOT EXISTS (SELECT FROM pg_type t LEFT JOIN pg_class r ON r.oid = t.typrelid
                    WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid AND (t.typelem <> 0 OR r.relkind <> 'c'));
SELECT type, count(*) FROM member GROUP BY 1 ORDER BY type COLLATE "C";
SELECT type, identity FROM member WHERE coalesce(comment, '') = '' ORDER BY type COLLATE "C", identity COLLATE "C";

-- nothing is granted to PUBLIC
SELECT m.type, m.identity, a.privilege_type
  FROM member m
  LEFT JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
  LEFT JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
  LEFT JOIN pg_namespace n ON m.classid = 'pg_namespace'::regclass AND n.oid = m.objid,
       aclexplode(CASE WHEN p.oid IS NOT NULL THEN coalesce(p.proacl, acldefault('f', p.proowner))
                       WHEN c.oid IS NOT NULL THEN coalesce(c.relacl,
                       acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))
                       WHEN n.oid IS NOT NULL THEN coalesce(n.nspacl, acldefault('n', n.nspowner)) END) a
 WHERE a.grantee = 0
 ORDER BY m.type COLLATE "C", m.identity COLLATE "C", a.privilege_type COLLATE "C";

-- functions
SELECT p.oid::regprocedure, pg_get_function_result(p.oid) AS returns,
       CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END AS volatility,
       CASE p.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END AS parallel,
       p.proisstrict AS strict, p.prosecdef AS definer
  FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
 ORDER BY p.oid::regprocedure::text COLLATE "C";

-- what pg_dump saves of it
SELECT unnest(extconfig)::regclass AS saved FROM pg_extension WHERE extname = 'evpg' ORDER BY 1;

-- the log: its indexes, no foreign keys, no rules, the one trigger; NOT NULL is a constraint since PostgreSQL 18
SELECT indexrelid::regclass, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'evpg.event_log'::regclass
  ORDER BY 1;
SELECT conname, contype FROM pg_constraint WHERE conrelid = 'evpg.event_log'::regclass AND contype <> 'n' ORDER BY 1;
SELECT tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'evpg.event_log'::regclass;
SELECT seqcache FROM pg_sequence WHERE seqrelid = 'evpg.event_position'::regclass;

-- the columns of an event
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'evpg.event'::regclass AND attnum > 0
  ORDER BY attnum;

-- settings (what evpg_set_context() sets is not shown)
SELECT name, setting, unit, context, min_val, max_val, short_desc FROM pg_settings WHERE name LIKE 'evpg.%'
  ORDER BY name COLLATE "C";
SET evpg.nonsense = 1;

DROP VIEW member;
