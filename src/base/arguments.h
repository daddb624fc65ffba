/*-------------------------------------------------------------------------
 *
 * arguments.h
 *		Checks of names and ids that come from outside.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_ARGUMENTS_H
#define EVPG_ARGUMENTS_H

#include "base/compat.h"
#include "fmgr.h"
#include "utils/array.h"
#include "utils/jsonb.h"

#define EVPG_MAX_NAME	255		/* bytes: types, names, tags */
#define EVPG_MAX_ID		1024	/* bytes: ids */
#define EVPG_MAX_TAGS	100		/* per event */

extern void EvpgCheckName(const char *name, const char *what);
extern void EvpgCheckNewName(const char *name, const char *what);
extern void EvpgCheckId(const char *id, const char *what);
extern void EvpgCheckTags(ArrayType *tags);
extern void EvpgCheckMetadata(const Jsonb *metadata);
extern void EvpgCheckCallersMetadata(Jsonb *metadata);
extern void EvpgCheckDerivedMetadata(Jsonb *metadata, Jsonb *of_command);
extern Jsonb *EvpgInheritDepth(Jsonb *metadata, Jsonb *outer);
extern Jsonb *EvpgKeepOwnMetadata(Jsonb *metadata, Jsonb *original);
extern void EvpgCheckCallersCommandId(const char *command_id);
pg_noreturn extern void EvpgRaiseTooDeep(const char *what);
extern void EvpgJsonbCheckLimits(const Jsonb *jsonb, const char *what);
extern void EvpgArgRefuseNull(FunctionCallInfo fcinfo, int arg, const char *what);
extern char *EvpgArgText(FunctionCallInfo fcinfo, int arg, const char *what);
extern bool EvpgArgBool(FunctionCallInfo fcinfo, int arg, const char *what);
extern char *EvpgArgName(FunctionCallInfo fcinfo, int arg, const char *what);
extern char *EvpgArgId(FunctionCallInfo fcinfo, int arg, const char *what);
extern void EvpgCheckKey(const char *key, const char *what);
extern char *EvpgArgKey(FunctionCallInfo fcinfo, int arg);
extern int32 EvpgArgInt(FunctionCallInfo fcinfo, int arg, const char *what, int32 least);
extern int64 EvpgArgBigintAtLeast(FunctionCallInfo fcinfo, int arg, const char *what, int64 least);
extern int64 EvpgArgBigint(FunctionCallInfo fcinfo, int arg, const char *what);
extern int64 EvpgArgMaxCount(FunctionCallInfo fcinfo, int arg);
extern char *EvpgArgOptionalId(FunctionCallInfo fcinfo, int arg, const char *what);
extern Jsonb *EvpgArgJsonb(FunctionCallInfo fcinfo, int arg, const char *what);
extern ArrayType *EvpgArgTextArray(FunctionCallInfo fcinfo, int arg, const char *what);

#endif							/* EVPG_ARGUMENTS_H */
