/*-------------------------------------------------------------------------
 *
 * declared_tables.h
 *		The tables that a projection with a handler declares.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_DECLARED_TABLES_H
#define EVPG_DECLARED_TABLES_H

#include "projection/projection.h"
#include "storage/lockdefs.h"
#include "utils/array.h"

extern Oid	EvpgDeclaredTableOid(const char *name, LOCKMODE mode);
extern Oid	EvpgDeclaredTablesOwner(EvpgProjection *projection);
extern ArrayType *EvpgDeclaredTablesQualify(ArrayType *tables, Oid handler);
extern void EvpgDeclaredTablesCheckUnclaimed(const char *name, ArrayType *tables);
extern void EvpgDeclaredTablesCheckReplaceable(EvpgProjection *projection, LOCKMODE mode);

#endif							/* EVPG_DECLARED_TABLES_H */
