-- The same by a scan of the log.
SELECT count(*), sum(length(data::text)) FROM evpg.event_log WHERE tags @> '{group:7}';
