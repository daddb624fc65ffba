/*-------------------------------------------------------------------------
 *
 * testing.h
 *		Hooks for tests, there only if built with -DEVPG_TEST, as scripts/test
 *		does.  In other builds they are constants and cost nothing.
 *
 * EVPG_MUTATION(name) is true where the setting evpg.test_mutation has that
 * name: a defect that a test must notice.  EVPG_WAIT_POINT(name) waits, where
 * evpg.test_wait has that name, for the session that holds pg_advisory_lock(17700); "name:2"
 * waits only the second time that the session comes there.  EVPG_PLANT(n), in
 * sessions, does what must never happen, which the attack (test/attack) must
 * notice.  EVPG_TELL_MUTATION() shows the defect of a background process as its
 * application_name, so that a test can wait until it has read a changed
 * configuration.  EVPG_REQUIRE(condition, what) raises an error unless something holds
 * that all tests must find to hold.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVPG_TESTING_H
#define EVPG_TESTING_H

#ifdef EVPG_TEST

extern void EvpgTestingInit(void);
extern bool EvpgTestingMutation(const char *name);
extern void EvpgTestingWait(const char *name);
extern void EvpgTestingPlant(int64 n);
extern void EvpgTestingTellMutation(void);

#define EVPG_TESTING_INIT()		EvpgTestingInit()
#define EVPG_MUTATION(name)		EvpgTestingMutation(name)
#define EVPG_WAIT_POINT(name)	EvpgTestingWait(name)
#define EVPG_PLANT(n)			EvpgTestingPlant(n)
#define EVPG_TELL_MUTATION()	EvpgTestingTellMutation()
#define EVPG_REQUIRE(condition, what) do { if (!(condition)) elog(ERROR, what); } while (0)

#else

#define EVPG_TESTING_INIT()		((void) 0)
#define EVPG_MUTATION(name)		false
#define EVPG_WAIT_POINT(name)	((void) 0)
#define EVPG_PLANT(n)			((void) 0)
#define EVPG_TELL_MUTATION()	((void) 0)
#define EVPG_REQUIRE(condition, what) ((void) 0)

#endif

#endif							/* EVPG_TESTING_H */
