/*-------------------------------------------------------------------------
 *
 * names.h
 *		Lists of names: of types, keys, tags and tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_NAMES_H
#define EVPG_NAMES_H

#include "nodes/pg_list.h"
#include "utils/array.h"

extern List *EvpgNamesFromArray(ArrayType *array);
extern Datum EvpgNamesToArray(List *names);
extern bool EvpgNamesHave(List *names, const char *name);
extern int	EvpgNamesBeginStored(void);
extern void EvpgNamesEndStored(int nest_level);

#endif							/* EVPG_NAMES_H */
