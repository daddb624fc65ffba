/*-------------------------------------------------------------------------
 *
 * saga_keys.c
 *		Finds the keys of an event, which are those of the instances that react to it:
 *		by a jsonpath, a function, a callback of a library, or the aggregate id
 *		(rule 16).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "evpg.h"

#include "saga/saga_code.h"
#include "saga/saga_keys.h"
#include "usercode/keys.h"

/*
 * Returns whether a library takes an event.  Aggregate types of the
 * registration, if it names any, count instead of its own.
 */
static bool
module_takes_event(EvpgSaga *saga, const EvpgEvent *event)
{
	const evpg_saga_definition *module = EvpgSagaCodeModule(saga);
	const char *const *type = saga->aggregate_types == NIL ? module->aggregate_types : NULL;

	while (type != NULL && *type != NULL && strcmp(*type, event->aggregate_type) != 0)
		type++;
	return (type == NULL || *type != NULL) && evpg_find_reaction(module, event->type) != NULL;
}

static List *
find_saga_keys(EvpgSaga *saga, const EvpgEvent *event)
{
	if (saga->has_module && !module_takes_event(saga, event))
		return NIL;
	if (saga->key_path != NULL)
		return EvpgKeysByPath(saga->key_path, event, "saga", saga->name);
	if (saga->key_signature != NULL)
		return EvpgKeysByFunction(EvpgSagaCodeFunction(saga, &saga->key_function, saga->key_signature, EVPG_ROLE_KEY),
								  event, "saga key");
	if (saga->has_module && saga->module.key != NULL)
		return EvpgKeysByModule(saga->module.key, event, "saga key");
	return list_make1((char *) event->aggregate_id);
}

/*
 * EvpgSagaKeys
 *		Finds the keys of the instances that react to an event by one version of a
 *		saga: a list of strings in CurrentMemoryContext; NIL if there are none, as for
 *		an event that a library does not take.  Errors are those of the code.
 */
List *
EvpgSagaKeys(EvpgSaga *saga, const EvpgEvent *event)
{
	EvpgSagaCall call = {.saga = saga->name, .event = event};
	List	   *keys;

	EvpgSagaCallBegin(&call);
	keys = find_saga_keys(saga, event);
	EvpgSagaCallEnd(&call);
	return keys;
}
