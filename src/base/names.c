/*-------------------------------------------------------------------------
 *
 * names.c
 *		Lists of names: of types, keys, tags and tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/names.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/guc.h"

/* Returns the elements of a text[] without nulls as strings, in CurrentMemoryContext. */
List *
EvpgNamesFromArray(ArrayType *array)
{
	Datum	   *elements;
	int			count;
	List	   *list = NIL;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &count);
	for (int i = 0; i < count; i++)
		list = lappend(list, TextDatumGetCString(elements[i]));
	return list;
}

/* Returns strings as a text[], in CurrentMemoryContext. */
Datum
EvpgNamesToArray(List *names)
{
	Datum	   *elements = palloc(sizeof(Datum) * Max(list_length(names), 1));
	ListCell   *cell;

	foreach(cell, names)
		elements[foreach_current_index(cell)] = CStringGetTextDatum(lfirst(cell));
	return PointerGetDatum(construct_array(elements, list_length(names), TEXTOID, -1, false, TYPALIGN_INT));
}

/* Returns whether a filter lets a name through: NIL lets all through. */
bool
EvpgNamesHave(List *names, const char *name)
{
	ListCell   *cell;

	if (names == NIL)
		return true;
	foreach(cell, names)
	{
		if (strcmp(lfirst(cell), name) == 0)
			return true;
	}
	return false;
}

/*
 * EvpgNamesBeginStored
 *		Begins to write identifiers that are stored and compared: up to
 *		EvpgNamesEndStored, which takes the result, they are quoted where they must be
 *		and nowhere else, whatever the session has set.  After an error the end of the
 *		(sub)transaction gives the setting back.
 */
int
EvpgNamesBeginStored(void)
{
	int			nest_level = NewGUCNestLevel();

	if (quote_all_identifiers)
		(void) set_config_option("quote_all_identifiers", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	return nest_level;
}

/* Ends what EvpgNamesBeginStored began. */
void
EvpgNamesEndStored(int nest_level)
{
	AtEOXact_GUC(true, nest_level);
}
