/*-------------------------------------------------------------------------
 *
 * loan.c
 *		A loan application as an aggregate in C: where it stands, its offers,
 *		and the work that employees have on their desks because of it; and a
 *		projection of what was asked for and how it ended.
 *
 * Events are the activities of a bank's own log, as import writes them:
 *
 *		A_...			the application: A_SUBMITTED {"amount"}, A_PREACCEPTED, ...
 *		O_...			its offer: O_SELECTED, O_CREATED, O_SENT, O_SENT_BACK, ...
 *		WorkScheduled	{"item"}: a kind of work that waits to be done
 *		WorkStarted		{"item", "resource"}: an employee takes it up
 *		WorkCompleted	{"item", "resource"}: and puts it down
 *
 * The work items of the log (W_..., with the transitions SCHEDULE, START and
 * COMPLETE) become three event types with the item as data: what happened is
 * the type, what it happened to is data.  All events carry "resource", the
 * employee, where the log knows him.
 *
 * state
 *		status		undecided, then approved, declined or cancelled
 *		stage		how far it came: new, submitted, partly_submitted,
 *					preaccepted, accepted, finalized
 *		amount		requested, in EUR
 *		offer		the offer that is open: selected, created, sent, sent_back;
 *					or how the last one ended: accepted, declined, cancelled;
 *					null before the first one
 *		replacing	a new offer was selected while another was open, which is
 *					still to be cancelled
 *		offers		{"sent": 2, "cancelled": 1, ...}: how often it happened
 *		open_work	{"Call client": {"waiting": 1, "started_by": ["10862"]}}:
 *					an entry goes when nothing waits and nobody is at it
 *		done_work	{"Call client": 3}: how often somebody put it down
 *		registered, activated	the loan, after approval
 *
 * row of loan_outcomes, one for each application
 *		outcome		undecided, then approved, declined or cancelled
 *		amount		requested, in EUR
 *		band		the lowest amount of its band: 0, 5000, 10000, ...
 *
 * What the log has taught, and the folds allow: work is put down and taken up
 * again without being scheduled anew; it is scheduled a second time while the
 * first is being done; now and then it is completed by nobody who started it.
 * A new offer is selected first, then the old one is cancelled.  Approval,
 * registration and activation come in any order.  Folds accept all of that,
 * since it happened; commands are stricter, since they are decided now.
 *
 *-------------------------------------------------------------------------
 */
#include "evpg.h"

#define MAX_AMOUNT	INT64_C(1000000000)

/* ------------------------------------------------------------------ small helpers */

static bool
is_text(const evpg_json *object, const char *key, const char *text)
{
	return strcmp(evpg_text(object, key), text) == 0;
}

static bool
is_decided(const evpg_json *state)
{
	return !is_text(state, "status", "undecided");
}

/* An offer that the client may still answer, or that is on its way to him. */
static bool
has_open_offer(const evpg_json *state)
{
	return is_text(state, "offer", "selected") || is_text(state, "offer", "created") ||
		is_text(state, "offer", "sent") || is_text(state, "offer", "sent_back");
}

/* A member that is an object, made when it is not there; lent. */
static evpg_json *
get_or_make_object(evpg_json *object, const char *key)
{
	evpg_json  *member = evpg_get(object, key);

	if (json_object_get_type(member) != json_type_object)
		evpg_set(object, key, member = json_object_new_object());
	return member;
}

/* Adds to a counter that never goes below 0. */
static void
count(evpg_json *object, const char *key, int64_t change)
{
	int64_t		value = evpg_int(object, key) + change;

	evpg_set_int(object, key, value < 0 ? 0 : value);
}

/* ------------------------------------------------------------------ decide: the application */

/* The employee: named in the command, else who sent it; "" if unknown. */
static const char *
get_resource(const evpg_command *command)
{
	const char *resource = evpg_text(command->data, "resource");

	return resource[0] == '\0' && command->actor != NULL ? command->actor : resource;
}

/* Emits an event that says no more than who did it. */
static void
emit(evpg_result *out, const char *type, const evpg_command *command)
{
	const char *resource = get_resource(command);
	evpg_json  *data = json_object_new_object();

	if (resource[0] != '\0')
		evpg_set_text(data, "resource", resource);
	evpg_emit(out, type, data);
}

static bool
is_submitted(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (!is_text(state, "stage", "new"))
		return true;
	evpg_reject(out, "not_submitted", "application \"%s\" has not been submitted", command->aggregate_id);
	return false;
}

/* Submitted, and nobody has decided yet. */
static bool
is_pending(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (!is_submitted(out, state, command))
		return false;
	if (!is_decided(state))
		return true;
	evpg_reject(out, "already_decided", "application \"%s\" is already %s", command->aggregate_id,
				evpg_text(state, "status"));
	evpg_reject_detail(out, evpg_object(EVPG_TEXT("status", evpg_text(state, "status"))));
	return false;
}

static bool
is_at_stage(evpg_result *out, const evpg_json *state, const evpg_command *command, const char *stage, const char *or_stage)
{
	if (!is_pending(out, state, command))
		return false;
	if (is_text(state, "stage", stage) || is_text(state, "stage", or_stage))
		return true;
	evpg_reject(out, "wrong_stage", "application \"%s\" is %s", command->aggregate_id, evpg_text(state, "stage"));
	evpg_reject_detail(out, evpg_object(EVPG_TEXT("stage", evpg_text(state, "stage")), EVPG_TEXT("needed", stage)));
	return false;
}

static void
submit(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_json  *amount = evpg_get(command->data, "amount");
	const char *resource = get_resource(command);
	evpg_json  *data;

	if (!is_text(state, "stage", "new"))
	{
		evpg_reject(out, "already_submitted", "application \"%s\" has already been submitted", command->aggregate_id);
		return;
	}
	/* ask for the type: reading 1.5 or "12" as an integer would succeed */
	if (json_object_get_type(amount) != json_type_int ||
		json_object_get_int64(amount) <= 0 || json_object_get_int64(amount) > MAX_AMOUNT)
	{
		evpg_reject(out, "invalid_amount", "amount must be an integer from 1 to %lld", (long long) MAX_AMOUNT);
		return;
	}
	data = evpg_object(EVPG_JSON("amount", evpg_share(amount)));
	if (resource[0] != '\0')
		evpg_set_text(data, "resource", resource);
	evpg_emit(out, "A_SUBMITTED", data);
	emit(out, "A_PARTLYSUBMITTED", command);
}

static void
preaccept(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (is_at_stage(out, state, command, "partly_submitted", "submitted"))
		emit(out, "A_PREACCEPTED", command);
}

static void
accept(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (is_at_stage(out, state, command, "preaccepted", "preaccepted"))
		emit(out, "A_ACCEPTED", command);
}

/* The first offer finalizes the application; a later one replaces the open one. */
static void
send_offer(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (!is_at_stage(out, state, command, "accepted", "finalized"))
		return;
	if (is_text(state, "stage", "accepted"))
		emit(out, "A_FINALIZED", command);
	emit(out, "O_SELECTED", command);
	if (has_open_offer(state))
		emit(out, "O_CANCELLED", command);
	emit(out, "O_CREATED", command);
	emit(out, "O_SENT", command);
}

static void
return_offer(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (!is_pending(out, state, command))
		return;
	if (is_text(state, "offer", "sent"))
		emit(out, "O_SENT_BACK", command);
	else
		evpg_reject(out, "no_offer_sent", "application \"%s\" has no offer that waits for an answer", command->aggregate_id);
}

static void
approve(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (!is_pending(out, state, command))
		return;
	if (!is_text(state, "offer", "sent") && !is_text(state, "offer", "sent_back"))
	{
		evpg_reject(out, "no_offer_sent", "application \"%s\" has no offer that waits for an answer", command->aggregate_id);
		return;
	}
	emit(out, "O_ACCEPTED", command);
	emit(out, "A_APPROVED", command);
	emit(out, "A_REGISTERED", command);
	emit(out, "A_ACTIVATED", command);
}

static void
decline(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (!is_pending(out, state, command))
		return;
	if (has_open_offer(state))
		emit(out, "O_DECLINED", command);
	emit(out, "A_DECLINED", command);
}

static void
cancel(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	if (!is_pending(out, state, command))
		return;
	if (has_open_offer(state))
		emit(out, "O_CANCELLED", command);
	emit(out, "A_CANCELLED", command);
}

/* ------------------------------------------------------------------ decide: work items */

/*
 * Work goes on after the decision, so it asks for no more than an application.
 * The name of the item, lent; NULL after a rejection.
 */
static const char *
get_item(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	evpg_json  *item = evpg_get(command->data, "item");

	if (!is_submitted(out, state, command))
		return NULL;
	if (json_object_get_type(item) == json_type_string && json_object_get_string_len(item) > 0)
		return json_object_get_string(item);
	evpg_reject(out, "item_missing", "the command needs the name of a work item");
	return NULL;
}

static int64_t
waiting(const evpg_json *state, const char *item)
{
	return evpg_int(evpg_get(evpg_get(state, "open_work"), item), "waiting");
}

/* Where resource stands in the list of those who are at the item; -1 if not. */
static int
find_starter(const evpg_json *work, const char *resource)
{
	evpg_json  *starters = evpg_get(work, "started_by");

	if (json_object_get_type(starters) != json_type_array)
		return -1;
	for (size_t i = 0; i < json_object_array_length(starters); i++)
		if (strcmp(json_object_get_string(json_object_array_get_idx(starters, i)), resource) == 0)
			return (int) i;
	return -1;
}

static void
emit_work(evpg_result *out, const char *type, const char *item, const char *resource)
{
	evpg_json  *data = evpg_object(EVPG_TEXT("item", item));

	if (resource[0] != '\0')
		evpg_set_text(data, "resource", resource);
	evpg_emit(out, type, data);
}

static void
reject_work(evpg_result *out, const char *code, const char *problem, const char *item, const char *resource)
{
	evpg_reject(out, code, "work item \"%s\" %s", item, problem);
	evpg_reject_detail(out, evpg_object(EVPG_TEXT("item", item), EVPG_TEXT("resource", resource)));
}

static void
schedule_work(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	const char *item = get_item(out, state, command);
	const char *resource = get_resource(command);

	if (item == NULL)
		return;
	if (waiting(state, item) > 0)
		reject_work(out, "work_already_scheduled", "is already scheduled", item, resource);
	else
		emit_work(out, "WorkScheduled", item, resource);
}

static void
start_work(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	const char *item = get_item(out, state, command);
	const char *resource = get_resource(command);

	if (item == NULL)
		return;
	if (resource[0] == '\0')
		evpg_reject(out, "resource_missing", "the command needs a resource or an actor");
	else if (find_starter(evpg_get(evpg_get(state, "open_work"), item), resource) >= 0)
		reject_work(out, "work_already_started", "is already being done by this resource", item, resource);
	else if (waiting(state, item) == 0 && evpg_int(evpg_get(state, "done_work"), item) == 0)
		reject_work(out, "work_not_scheduled", "has never been scheduled", item, resource);
	else
		emit_work(out, "WorkStarted", item, resource);
}

/* Only who has taken it up puts it down, and only once. */
static void
complete_work(evpg_result *out, const evpg_json *state, const evpg_command *command)
{
	const char *item = get_item(out, state, command);
	const char *resource = get_resource(command);

	if (item == NULL)
		return;
	if (resource[0] == '\0')
		evpg_reject(out, "resource_missing", "the command needs a resource or an actor");
	else if (find_starter(evpg_get(evpg_get(state, "open_work"), item), resource) < 0)
		reject_work(out, "work_not_started", "is not being done by this resource", item, resource);
	else
		emit_work(out, "WorkCompleted", item, resource);
}

/* ------------------------------------------------------------------ fold: the application */

static void
submitted(evpg_json *state, const evpg_event *event)
{
	evpg_set_text(state, "stage", "submitted");
	evpg_set(state, "amount", evpg_share(evpg_get(event->data, "amount")));
}

/* A_PARTLYSUBMITTED, A_PREACCEPTED, A_ACCEPTED, A_FINALIZED */
static void
stage_reached(evpg_json *state, const evpg_event *event)
{
	const char *stage = "finalized";

	if (strcmp(event->type, "A_PARTLYSUBMITTED") == 0)
		stage = "partly_submitted";
	else if (strcmp(event->type, "A_PREACCEPTED") == 0)
		stage = "preaccepted";
	else if (strcmp(event->type, "A_ACCEPTED") == 0)
		stage = "accepted";
	evpg_set_text(state, "stage", stage);
}

static void
approved(evpg_json *state, const evpg_event *event)
{
	(void) event;
	evpg_set_text(state, "status", "approved");
}

static void
declined(evpg_json *state, const evpg_event *event)
{
	(void) event;
	evpg_set_text(state, "status", "declined");
}

static void
cancelled(evpg_json *state, const evpg_event *event)
{
	(void) event;
	evpg_set_text(state, "status", "cancelled");
}

static void
registered(evpg_json *state, const evpg_event *event)
{
	(void) event;
	evpg_set_bool(state, "registered", true);
}

static void
activated(evpg_json *state, const evpg_event *event)
{
	(void) event;
	evpg_set_bool(state, "activated", true);
}

/* ------------------------------------------------------------------ fold: offers */

static void
offer_changed(evpg_json *state, const char *offer)
{
	evpg_set_text(state, "offer", offer);
	count(get_or_make_object(state, "offers"), offer, 1);
}

static void
offer_selected(evpg_json *state, const evpg_event *event)
{
	(void) event;
	if (has_open_offer(state))
		evpg_set_bool(state, "replacing", true);
	offer_changed(state, "selected");
}

static void
offer_created(evpg_json *state, const evpg_event *event)
{
	(void) event;
	offer_changed(state, "created");
}

static void
offer_sent(evpg_json *state, const evpg_event *event)
{
	(void) event;
	offer_changed(state, "sent");
}

static void
offer_sent_back(evpg_json *state, const evpg_event *event)
{
	(void) event;
	offer_changed(state, "sent_back");
}

static void
offer_accepted(evpg_json *state, const evpg_event *event)
{
	(void) event;
	offer_changed(state, "accepted");
}

static void
offer_declined(evpg_json *state, const evpg_event *event)
{
	(void) event;
	offer_changed(state, "declined");
}

static void
offer_cancelled(evpg_json *state, const evpg_event *event)
{
	(void) event;
	if (evpg_bool(state, "replacing"))
	{
		/* the old offer goes, the selected one stays */
		evpg_set_bool(state, "replacing", false);
		count(get_or_make_object(state, "offers"), "cancelled", 1);
	}
	else
		offer_changed(state, "cancelled");
}

/* ------------------------------------------------------------------ fold: work items */

static void
work_scheduled(evpg_json *state, const evpg_event *event)
{
	evpg_json  *open_work = get_or_make_object(state, "open_work");

	count(get_or_make_object(open_work, evpg_text(event->data, "item")), "waiting", 1);
}

static void
work_started(evpg_json *state, const evpg_event *event)
{
	evpg_json  *open_work = get_or_make_object(state, "open_work");
	evpg_json  *work = get_or_make_object(open_work, evpg_text(event->data, "item"));
	evpg_json  *starters = evpg_get(work, "started_by");

	if (json_object_get_type(starters) != json_type_array)
		evpg_set(work, "started_by", starters = json_object_new_array());
	json_object_array_add(starters, json_object_new_string(evpg_text(event->data, "resource")));
	count(work, "waiting", -1);
}

/*
 * Puts down what this employee has taken up, else what somebody has, else
 * takes away what waits: the log does not always say who started it.
 */
static void
work_completed(evpg_json *state, const evpg_event *event)
{
	const char *item = evpg_text(event->data, "item");
	evpg_json  *open_work = get_or_make_object(state, "open_work");
	evpg_json  *work = evpg_get(open_work, item);

	count(get_or_make_object(state, "done_work"), item, 1);
	if (json_object_get_type(work) == json_type_object)
	{
		evpg_json  *starters = evpg_get(work, "started_by");
		int			index = find_starter(work, evpg_text(event->data, "resource"));

		if (json_object_get_type(starters) != json_type_array || json_object_array_length(starters) == 0)
			count(work, "waiting", -1);
		else
			json_object_array_del_idx(starters, index < 0 ? 0 : (size_t) index, 1);

		if (evpg_int(work, "waiting") == 0 &&
			(json_object_get_type(starters) != json_type_array || json_object_array_length(starters) == 0))
			evpg_remove(open_work, item);
	}
}

/* ------------------------------------------------------------------ project */

static int64_t
band_of(int64_t amount)
{
	static const int64_t bands[] = {50000, 20000, 10000, 5000};

	for (size_t i = 0; i < sizeof(bands) / sizeof(bands[0]); i++)
		if (amount >= bands[i])
			return bands[i];
	return 0;
}

static void
row_begins(evpg_result *out, evpg_json *row, const evpg_event *event)
{
	int64_t		amount = evpg_int(event->data, "amount");

	(void) out;
	evpg_set_int(row, "amount", amount);
	evpg_set_int(row, "band", band_of(amount));
}

/* A_APPROVED, A_DECLINED, A_CANCELLED: listeners are told of decisions alone. */
static void
row_ends(evpg_result *out, evpg_json *row, const evpg_event *event)
{
	const char *outcome = "cancelled";

	if (strcmp(event->type, "A_APPROVED") == 0)
		outcome = "approved";
	else if (strcmp(event->type, "A_DECLINED") == 0)
		outcome = "declined";
	evpg_set_text(row, "outcome", outcome);
	if (evpg_wants_delta(out))
		evpg_delta(out, evpg_copy(row));
}

/* ------------------------------------------------------------------ definitions */

/* Holds of every state in the log as well. */
static bool
is_sound(evpg_result *why, const evpg_json *state)
{
	evpg_json  *offers = evpg_get(state, "offers");
	int64_t		answered = evpg_int(offers, "accepted") + evpg_int(offers, "declined") + evpg_int(offers, "cancelled");

	if (answered > evpg_int(offers, "selected"))
		evpg_reject(why, "too_many_answers", "more offers have ended than were selected");
	else if (is_text(state, "status", "approved") && !is_text(state, "stage", "finalized"))
		evpg_reject(why, "approved_too_early", "the application is approved but not finalized");
	return !why->rejected;
}

EVPG_AGGREGATE(loan_application,
			   .initial_state = "{\"status\": \"undecided\", \"stage\": \"new\", \"amount\": 0, \"offer\": null,"
			   " \"offers\": {}, \"open_work\": {}, \"done_work\": {}}",
			   .commands = EVPG_COMMANDS(EVPG_ON("Submit", submit),
										 EVPG_ON("Preaccept", preaccept),
										 EVPG_ON("Accept", accept),
										 EVPG_ON("SendOffer", send_offer),
										 EVPG_ON("ReturnOffer", return_offer),
										 EVPG_ON("Approve", approve),
										 EVPG_ON("Decline", decline),
										 EVPG_ON("Cancel", cancel),
										 EVPG_ON("ScheduleWork", schedule_work),
										 EVPG_ON("StartWork", start_work),
										 EVPG_ON("CompleteWork", complete_work)),
			   .events = EVPG_EVENTS(EVPG_ON("A_SUBMITTED", submitted),
									 EVPG_ON("A_PARTLYSUBMITTED", stage_reached),
									 EVPG_ON("A_PREACCEPTED", stage_reached),
									 EVPG_ON("A_ACCEPTED", stage_reached),
									 EVPG_ON("A_FINALIZED", stage_reached),
									 EVPG_ON("A_APPROVED", approved),
									 EVPG_ON("A_DECLINED", declined),
									 EVPG_ON("A_CANCELLED", cancelled),
									 EVPG_ON("A_REGISTERED", registered),
									 EVPG_ON("A_ACTIVATED", activated),
									 EVPG_ON("O_SELECTED", offer_selected),
									 EVPG_ON("O_CREATED", offer_created),
									 EVPG_ON("O_SENT", offer_sent),
									 EVPG_ON("O_SENT_BACK", offer_sent_back),
									 EVPG_ON("O_ACCEPTED", offer_accepted),
									 EVPG_ON("O_DECLINED", offer_declined),
									 EVPG_ON("O_CANCELLED", offer_cancelled),
									 EVPG_ON("WorkScheduled", work_scheduled),
									 EVPG_ON("WorkStarted", work_started),
									 EVPG_ON("WorkCompleted", work_completed)),
			   .invariant = is_sound);

/* The key is the application. */
EVPG_PROJECTION(loan_outcomes,
				.initial_state = "{\"outcome\": \"undecided\", \"amount\": 0, \"band\": 0}",
				.aggregate_types = EVPG_TYPES("loan_application"),
				.events = EVPG_PROJECTS(EVPG_ON("A_SUBMITTED", row_begins),
										EVPG_ON("A_APPROVED", row_ends),
										EVPG_ON("A_DECLINED", row_ends),
										EVPG_ON("A_CANCELLED", row_ends)));
