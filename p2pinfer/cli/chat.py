"""``p2pinfer chat`` and ``p2pinfer demo``: chat with a swarm, or with one started for it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from p2pinfer.cli.answer_options import ANSWER, AnswerFlags
from p2pinfer.cli.machine_options import MACHINE, MachineFlags
from p2pinfer.cli.options import (
    REACH,
    AsJson,
    Model,
    Network,
    Pace,
    Peers,
    Quota,
    ReachFlags,
    SwarmModel,
    Via,
    WaysIn,
    option,
)
from p2pinfer.cli.running import run_task
from p2pinfer.cli.sizes import check_range, parse_bytes
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.engine.store.store import Store
    from p2pinfer.engine.template import Message
    from p2pinfer.node.requester import ClientOptions


def chat(
    prompt: str | None = None,
    /,
    *,
    bootstrap: WaysIn = (),
    model: SwarmModel = None,
    network: Network = "main",
    quota: Quota = None,
    wait: Annotated[
        float, option("wait", "Seconds to wait for peers that serve all layers.")
    ] = 10.0,
    via: Via = 0,
    pace: Pace = 0,
    as_json: AsJson = False,
    reach: ReachFlags = REACH,
    answer: AnswerFlags = ANSWER,
    machine: MachineFlags = MACHINE,
) -> None:
    """Chat with a model through a swarm.

    Parameters
    ----------
    prompt: str
        One question; it can also be piped in. If omitted: an interactive chat.
    """
    from p2pinfer.cli.model_argument import default_model, draft_model, name_model
    from p2pinfer.cli.terminal import question_of
    from p2pinfer.node.hidden_way import check_hops
    from p2pinfer.node.local_peers import ways_in
    from p2pinfer.node.model_supply import check_named, open_store
    from p2pinfer.node.requester import NO_WAY_IN, ClientOptions
    from p2pinfer.node.swarm_connection import looks_around

    check_range("wait", wait, 0)
    answer.options()  # raises before anything starts
    template = answer.template()
    limits = machine.machine()
    named = reach.ways_in(bootstrap)
    way, model = reach.of(network, named), reach.model(model)
    check_hops(via, way, pace)
    ways = named if via else ways_in(named, way.network)
    if not (ways or via or looks_around(way)):
        raise UserError(NO_WAY_IN)
    check_named(model)
    question = question_of(prompt, as_json=as_json)
    store = open_store(parse_bytes("quota", quota))
    options = ClientOptions(
        name_model(model, store) if model else None,
        ways,
        way,
        answer.keep_layers,
        limits,
        shows_tokens=answer.show_tokens,
        find_s_max=wait,
        audit_rate=answer.audit_rate,
        proof_rate=answer.proof_rate,
        drafts=answer.draft and not pace,
        draft_model=draft_model(answer.draft_model, store),
        sponsored=answer.sponsor,
        anonymous=answer.anonymous,
        default_model=default_model(store),
        via=via,
        pace_ms=pace,
    )
    run_task(lambda: _talk(options, store, answer, template, question, as_json=as_json))


def demo(
    prompt: str | None = None,
    /,
    *,
    peers: Peers = 3,
    model: Model = "default",
    as_json: AsJson = False,
    answer: AnswerFlags = ANSWER,
    machine: MachineFlags = MACHINE,
) -> None:
    """Start a swarm of local peers, each in its own process, and chat with it.

    Parameters
    ----------
    prompt: str
        One question; it can also be piped in. If omitted: an interactive chat.
    """
    from p2pinfer.cli.model_argument import draft_model, name_model
    from p2pinfer.cli.starting import starting
    from p2pinfer.cli.terminal import question_of
    from p2pinfer.engine.template import check_template
    from p2pinfer.node.local_swarm import share_layers
    from p2pinfer.node.model_supply import check_named, open_store, open_whole
    from p2pinfer.node.requester import ClientOptions
    from p2pinfer.places import data_dir

    answer.options()
    template = answer.template()
    limits = machine.machine()
    check_named(model)
    question = question_of(prompt, as_json=as_json)
    store = open_store()
    opened = open_whole(name_model(model, store), store)
    if not template and opened.info.chat_template:
        check_template(opened.info.chat_template)
    drafting = draft_model(answer.draft_model, store)
    ranges = share_layers(opened, peers, answer.keep_layers, limits)

    # The first peer has the whole model; the others fetch their layers, as remote peers would.
    homes = data_dir() / "demo" / f"{peers}-peers"

    async def run() -> None:
        async with starting(opened, ranges, limits, homes) as running:
            ways_in = tuple(peer.addresses[0] for peer in running)
            options = ClientOptions(
                opened.id,
                ways_in,
                "local",
                answer.keep_layers,
                limits,
                audit_rate=answer.audit_rate,
                proof_rate=answer.proof_rate,
                drafts=answer.draft,
                draft_model=drafting,
            )
            await _talk(options, store, answer, template, question, as_json=as_json)

    run_task(run)


async def _talk(
    options: "ClientOptions",
    store: "Store",
    answer: AnswerFlags,
    template: str | None,
    question: str | None,
    *,
    as_json: bool,
) -> None:
    """Answer one question, or hold a conversation on a terminal, with one model or several."""
    from p2pinfer.cli.terminal import answer_once, doing, notes, say, words
    from p2pinfer.client.conversation import open_conversation
    from p2pinfer.core.errors import P2pinferError
    from p2pinfer.node.requester import open_client
    from p2pinfer.places import state_dir

    said: list[Message] = []

    async def talk(options: "ClientOptions") -> tuple[ModelId, ModelId | None]:
        """Talk with one model; returns it, and the one that the person wants next."""
        async with (
            doing(words()("Joining the swarm …")) as done,
            open_client(options, store, done.tell, lambda text: done.step(words()(text))) as client,
        ):
            done()
            how = answer.options(client.model.advice)
            async with open_conversation(client, how, say, template) as conversation:
                if question is not None:
                    await answer_once(conversation, question, as_json=as_json)
                    return client.model.id, None
                from p2pinfer.cli.repl import converse

                conversation.messages = said or conversation.messages
                wanted = await converse(conversation, client, state_dir() / "chat_history")
                said[:] = conversation.messages
                return client.model.id, wanted

    model, wanted = await talk(options)
    while wanted:
        # The draft model has the first model's tokens.
        other = replace(options, model=wanted, draft_model=None)
        try:
            model, wanted = await talk(other)
        except P2pinferError as error:
            notes.print(str(error), style="red", markup=False)
            model, wanted = await talk(replace(other, model=model))
