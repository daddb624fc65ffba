/*-------------------------------------------------------------------------
 *
 * shape.h
 *		The columns of evpg's relations and types that C code knows by number.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_SHAPE_H
#define EVPG_SHAPE_H

#include "access/htup.h"
#include "access/tupdesc.h"

typedef enum EvpgShape
{
	/* relations */
	EVPG_SHAPE_EVENT_LOG,
	EVPG_SHAPE_STREAM,
	EVPG_SHAPE_PROJECTION_STATE,
	EVPG_SHAPE_SAGA_INSTANCE,
	EVPG_SHAPE_COMMAND_RECORD,
	EVPG_SHAPE_CONSUMER,
	EVPG_SHAPE_SAGA_EVENT,
	EVPG_SHAPE_SAGA_TOTAL,
	EVPG_SHAPE_TIMER,
	EVPG_SHAPE_SUBSCRIPTION_LEASE,
	EVPG_SHAPE_SUBSCRIPTION_PARTITION,
	EVPG_SHAPE_CLOCK,
	EVPG_SHAPE_EVENT,
	/* composite types */
	EVPG_SHAPE_NEW_EVENT,
	EVPG_SHAPE_STREAM_APPEND,
	EVPG_SHAPE_DELIVERY,
	EVPG_SHAPE_COMMAND,
	EVPG_SHAPE_OUTCOME,
	EVPG_SHAPE_PROJECTED,
	EVPG_SHAPE_REACTION,
	EVPG_SHAPE_REJECTION,
	EVPG_SHAPE_FIRED_TIMER,
	EVPG_SHAPE_STREAM_INFO,
	EVPG_SHAPE_COUNT
} EvpgShape;

extern Oid	EvpgShapeCheck(Oid schema, EvpgShape shape);
extern TupleDesc EvpgShapeRow(EvpgShape which);
extern TupleDesc EvpgShapeType(Oid relid);
extern HeapTuple EvpgShapeFormTuple(TupleDesc type, int columns, Datum *values, bool *nulls);

#endif							/* EVPG_SHAPE_H */
