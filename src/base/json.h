/*-------------------------------------------------------------------------
 *
 * json.h
 *		jsonb and json-c values: conversion, ownership, limits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_JSON_H
#define EVPG_JSON_H

#include "evpg.h"
#include "utils/jsonb.h"

/* A json-c value that is freed with a memory context, unless it is let go. */
typedef struct EvpgJsonOwner
{
	MemoryContextCallback callback;
	evpg_json  *json;
} EvpgJsonOwner;

extern EvpgJsonOwner *EvpgJsonOwn(evpg_json *json);
extern evpg_json *EvpgJsonLetGo(EvpgJsonOwner *owner);
extern void EvpgJsonFill(EvpgJsonOwner *owner, const Jsonb *jsonb, const char *what);
extern evpg_json *EvpgJsonFromJsonb(const Jsonb *jsonb, const char *what);
extern Jsonb *EvpgJsonToJsonb(const evpg_json *json, const char *what);
extern Size EvpgJsonSize(const evpg_json *json, const char *what);

#endif							/* EVPG_JSON_H */
