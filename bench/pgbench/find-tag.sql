-- The thousand events with a tag.
SELECT count(*), sum(length(data::text)) FROM evpg_read_all(tags => '{group:7}', max_count => NULL);
