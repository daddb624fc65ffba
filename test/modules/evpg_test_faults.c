/*-------------------------------------------------------------------------
 *
 * evpg_test_faults.c
 *		Faults that scripts/test-sanitizers must find.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"
#include "fmgr.h"

#include <limits.h>
#include <json-c/json.h>

#include "utils/memutils.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT Datum commit_fault(PG_FUNCTION_ARGS);

PG_FUNCTION_INFO_V1(commit_fault);

/* No compiler sees through these. */
static char *volatile memory;
static volatile int big = INT_MAX;

/*
 * SQL: commit_fault(name cstring) RETURNS int
 *		Does what no code may do.  The result depends on what was read, so that it is
 *		read.
 */
Datum
commit_fault(PG_FUNCTION_ARGS)
{
	char	   *name = PG_GETARG_CSTRING(0);
	int			result = 0;

	memory = palloc(20);
	if (strcmp(name, "behind a chunk") == 0)
		memory[21] = 1;
	else if (strcmp(name, "freed chunk") == 0)
	{
		pfree(memory);
		result = memory[3];
	}
	else if (strcmp(name, "reset context") == 0)
	{
		MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fault", ALLOCSET_SMALL_SIZES);

		memory = MemoryContextAlloc(context, 20);
		MemoryContextReset(context);
		result = memory[3];
	}
	else if (strcmp(name, "freed JSON") == 0)
	{
		json_object *object = json_object_new_string("evpg");

		memory = (char *) object;
		json_object_put(object);
		result = memory[0];
	}
	else if (strcmp(name, "leak") == 0)
	{
		/* One may be found on the stack when the process ends. */
		for (int n = 0; n < 100; n++)
			memory = (char *) json_object_new_string("evpg");
	}
	else if (strcmp(name, "shift") == 0)
		result = 1 << big;
	else if (strcmp(name, "not written") == 0)
	{
		if (memory[7] == 'x')
			elog(LOG, "what was not written is x");
	}
	else
		elog(ERROR, "there is no fault \"%s\"", name);
	memory = NULL;
	PG_RETURN_INT32(result);
}
