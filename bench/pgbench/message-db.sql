-- message-db: the same event, one category, ids made as its documentation does.
\set id random(1, :streams)
SELECT message_store.write_message(gen_random_uuid()::varchar, 'bench-' || :id, 'MoneyDeposited', :data);
