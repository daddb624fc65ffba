/*
 * What cppcheck has to know of the server's macros: it does not read the
 * server's headers.
 */
#define ereport(level, rest) abort()
#define elog(level, ...) abort()
#define foreach(cell, list) for (cell = first(list); cell != NULL; cell = next(list))
#define PG_TRY() if (begin())
#define PG_CATCH() else
#define PG_FINALLY()
#define PG_END_TRY() finish()
#define PG_FUNCTION_INFO_V1(name) extern int name##_info
#define PG_MODULE_MAGIC extern int magic_info
#define json_object_object_foreach(object, key, value) \
	const char *key = first(object); struct json_object *value = get(object, key); \
	for (; more(object, &key); next(object, &value))
