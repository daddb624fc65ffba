/*-------------------------------------------------------------------------
 *
 * jsonb.h
 *		Making jsonb objects member by member, and reading their members.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_JSONB_H
#define EVPG_JSONB_H

#include "datatype/timestamp.h"
#include "utils/array.h"
#include "utils/jsonb.h"

extern void EvpgJsonbBegin(JsonbParseState **state);
extern JsonbValue *EvpgJsonbEnd(JsonbParseState **state);
extern Jsonb *EvpgJsonbFinish(JsonbParseState **state);
extern void EvpgJsonbAddKey(JsonbParseState **state, const char *name);
extern void EvpgJsonbAdd(JsonbParseState **state, const char *name, JsonbValue *value);
extern void EvpgJsonbAddInt64(JsonbParseState **state, const char *name, int64 number);
extern void EvpgJsonbAddNumeric(JsonbParseState **state, const char *name, Datum numeric);
extern void EvpgJsonbAddTime(JsonbParseState **state, const char *name, TimestampTz time);

/* NULL leaves the member out */
extern void EvpgJsonbAddText(JsonbParseState **state, const char *name, const char *text);
extern void EvpgJsonbAddJsonb(JsonbParseState **state, const char *name, Jsonb *jsonb);

/* NULL is JSON's null */
extern void EvpgJsonbAddTextOrNull(JsonbParseState **state, const char *name, const char *text);
extern void EvpgJsonbAddJsonbOrNull(JsonbParseState **state, const char *name, Jsonb *jsonb);
extern void EvpgJsonbAddArrayOrNull(JsonbParseState **state, const char *name, ArrayType *texts);

extern JsonbValue *EvpgJsonbMember(const Jsonb *object, const char *name);
extern char *EvpgJsonbMemberText(const Jsonb *object, const char *name);
extern Jsonb *EvpgJsonbEmptyObject(void);
extern Jsonb *EvpgJsonbConcat(Jsonb *first, Jsonb *second);

#endif							/* EVPG_JSONB_H */
