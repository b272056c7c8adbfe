"""The page itself: what stands where, and what happens when it is used."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from hummingbird.app import cards, jobs, model_page, moving_shapes, style
from hummingbird.app.rewriting import Rewriter, RewritingError, instruction_for
from hummingbird.app.videos import Videos, unfinished
from hummingbird.nano import world

if TYPE_CHECKING:
    import gradio as gr

    from hummingbird.serving import Engine

__all__ = ["MAX_VIDEOS", "build_page", "page_options"]

MAX_VIDEOS = 4
"""Videos of one press of the button."""

GENERAL_EXAMPLES = (
    "a red panda eating bamboo in a misty forest, close-up, soft morning light",
    "waves breaking on a rocky coast at sunset, seen from above",
    "a steam train crossing a stone bridge in the mountains, wide shot",
    "an astronaut walking through a field of sunflowers, the camera moves slowly forward",
)

# What of a form is kept in the browser, in this order.
_FORM = (
    "prompt", "model", "num_videos", "num_inference_steps", "guidance_scale", "num_frames", "fps", "width",
    "height", "negative_prompt", "seed", "is_random",
)  # fmt: skip
_PAIR = (
    "prompt", "model_a", "num_inference_steps_a", "guidance_scale_a", "model_b", "num_inference_steps_b",
    "guidance_scale_b", "num_frames", "fps", "width", "height", "seed", "is_random",
)  # fmt: skip
_KEEP = "(...values) => [{values: values}]"
_SECRET = "hummingbird-page"  # not a secret: without one, nothing could be read again after a restart


def page_options(engine: Engine) -> dict[str, Any]:
    """Arguments of ``Blocks.launch`` and ``gradio.mount_gradio_app`` that the page needs.

    Args:
        engine: the one that the page was built with.
    """
    return {
        "theme": style.theme(),
        "css": style.CSS,
        "head": style.HEAD,
        "app_kwargs": {"routes": Videos(engine).routes()},
        "footer_links": [],
        "ssr_mode": False,
        "show_error": False,
        "max_file_size": 1024,  # nothing is uploaded
    }


def build_page(engine: Engine, rewriter: Rewriter | None = None) -> gr.Blocks:
    """Lay out the page.

    Args:
        engine: makes the videos; the caller closes it.
        rewriter: improves prompts where one is configured.
    """
    import gradio as gr

    with gr.Blocks(title="Hummingbird", analytics_enabled=False, fill_width=True) as demo:
        _Page(engine, rewriter).build(demo)
    demo.queue(default_concurrency_limit=None, api_open=False)
    return demo


class _Page:
    """One page over one engine; what a browser has is handed in with every call."""

    def __init__(self, engine: Engine, rewriter: Rewriter | None) -> None:
        self.engine = engine
        self.rewriter = rewriter
        self.videos = Videos(engine)
        self.models = list(engine.models)

    # --- layout ---------------------------------------------------------------------------------------------

    def build(self, demo: gr.Blocks) -> None:
        """Make all parts inside ``demo`` and connect them."""
        import gradio as gr

        def stored(key: str) -> gr.BrowserState:
            return gr.BrowserState(None, storage_key=f"hummingbird-{key}", secret=_SECRET)

        self.client = stored("client")
        self.form_state, self.batch = stored("form"), stored("batch")
        self.pair_state, self.pair_batch = stored("pair-form"), stored("pair")
        self.header = gr.HTML(self._header(self.engine.default_model), js_on_load=None)
        with gr.Tabs():
            with gr.Tab("Generate"):
                self._build_generate()
            with gr.Tab("Compare"):
                self._build_compare()
            with gr.Tab("Model") as model_tab:
                self._build_model()
        self._connect(demo, model_tab)

    def _build_generate(self) -> None:
        """Three parts, which the style sheet places: question and answer first where the screen is narrow."""
        import gradio as gr

        engine, model = self.engine, self.engine.default_model
        with gr.Row(equal_height=False, elem_id="hb-main"):
            with gr.Column(elem_id="hb-ask"):
                self.draws = gr.HTML(self._draws(model), js_on_load=None)
                self.prompt = gr.Textbox(
                    label="Prompt",
                    value=self._examples(model)[0],
                    lines=2,
                    max_lines=8,
                    max_length=engine.limits.max_prompt_chars,
                    placeholder="Describe the video",
                )
                self.note = gr.HTML("", js_on_load=None)
                with gr.Row(visible=self.rewriter is not None):
                    self.rewrite = gr.Button("Rewrite the prompt", size="sm")
                    self.undo = gr.Button("Undo the rewriting", size="sm", visible=False)
                    self.rewrites_always = gr.Checkbox(label="Rewrite before generating", container=False)
                self.rewritten = gr.State(None)
                with gr.Row():
                    self.go = gr.Button("Generate", variant="primary", scale=3, min_width=120)
                    self.halt = gr.Button("Stop", variant="stop", scale=1, min_width=80, interactive=False)
                self.examples = gr.HTML(self._example_buttons(model), js_on_load=style.ON_LOAD)
            with gr.Column(elem_id="hb-show"):
                self.status = gr.HTML(_status(""), js_on_load=style.ANNOUNCE)
                self.blank = gr.HTML(cards.empty("Your video appears here."), js_on_load=None)
                with gr.Column(elem_id="hb-results"):
                    self.slots = [
                        gr.HTML("", visible=False, js_on_load=style.ON_LOAD) for _ in range(MAX_VIDEOS)
                    ]
                gr.HTML('<h2 class="hb-heading">Made in this browser</h2>', js_on_load=None)
                self.history = gr.HTML(cards.history([]), js_on_load=style.ON_LOAD)
            with gr.Column(elem_id="hb-tune"):
                self._build_builder(model)
                self._build_settings(model)

    def _build_builder(self, model: str) -> None:
        import gradio as gr

        first = world.parse_caption(moving_shapes.EXAMPLES[0])
        assert first is not None
        motions = [(world.motion_phrase(motion), motion) for motion in world.MOTIONS]
        with gr.Accordion(
            "Build a prompt", open=True, visible=self.videos.speaks_world(model)
        ) as self.builder:
            shape = gr.Radio(list(world.SHAPES), value=first.shape, label="Shape")
            color = gr.Radio(list(world.COLORS), value=first.color, label="Colour", elem_id="builder-color")
            motion = gr.Radio(motions, value=first.motion, label="Motion")
            background = gr.Radio(
                list(world.BACKGROUNDS),
                value=first.background,
                label="Background",
                elem_id="builder-background",
            )
            self.surprise = gr.Button("Surprise me", size="sm")
        self.choices = [shape, color, motion, background]

    def _build_settings(self, model: str) -> None:
        import gradio as gr

        defaults, limits = self.engine.facts(model).default_call, self.engine.limits
        with gr.Accordion("Settings", open=True):
            self.model = gr.Dropdown(
                self.models, value=model, label="Model", visible=len(self.models) > 1, filterable=False
            )
            with gr.Row():
                self.steps = gr.Slider(
                    1,
                    self.engine.max_steps(model),
                    value=defaults["num_inference_steps"],
                    step=1,
                    label="Steps",
                )
                self.guidance = gr.Slider(0, 20, value=defaults["guidance_scale"], step=0.1, label="Guidance")
            with gr.Row():
                self.frames = gr.Slider(
                    1, min(64, limits.max_frames), value=defaults["num_frames"], step=1, label="Frames"
                )
                self.fps = gr.Slider(1, 60, value=defaults["fps"], step=1, label="Frames per second")
            self.width, self.height = self._size_fields(model)
            self.negative = gr.Textbox(
                label="Keep out (negative prompt)", visible=self._takes_negative(model), max_lines=3
            )
            with gr.Row(equal_height=True):
                self.seed = _seed_field(gr)
                self.is_random = gr.Checkbox(label="Random seed", value=True, min_width=120)
                self.reuse = gr.Button("Reuse the last seed", size="sm", min_width=120)
            self.num_videos = gr.Slider(1, MAX_VIDEOS, value=1, step=1, label="Videos at once")
        self.form = [
            self.prompt, self.model, self.num_videos, self.steps, self.guidance, self.frames, self.fps,
            self.width, self.height, self.negative, self.seed, self.is_random,
        ]  # fmt: skip

    def _size_fields(self, model: str) -> tuple[gr.Number, gr.Number]:
        import gradio as gr

        facts = self.engine.facts(model)
        step = facts.size_multiple or 8
        with gr.Row():
            width = gr.Number(
                facts.default_call["width"],
                label="Width",
                precision=0,
                minimum=step,
                step=step,
                min_width=100,
            )
            height = gr.Number(
                facts.default_call["height"],
                label="Height",
                precision=0,
                minimum=step,
                step=step,
                min_width=100,
            )
        return width, height

    def _build_compare(self) -> None:
        import gradio as gr

        engine, model = self.engine, self.engine.default_model
        other = self.models[1] if len(self.models) > 1 else model
        gr.HTML(
            '<p class="hb-draws">The same prompt and the same noise, twice: other steps, other guidance, '
            "or another model.</p>",
            js_on_load=None,
        )
        self.pair_prompt = gr.Textbox(
            label="Prompt for both",
            value=self._examples(model)[0],
            lines=2,
            max_length=engine.limits.max_prompt_chars,
        )
        sides: list[list[Any]] = []
        with gr.Row(equal_height=False):
            for letter, name in (("A", model), ("B", other)):
                defaults = engine.facts(name).default_call
                steps = int(defaults["num_inference_steps"])
                with gr.Column(min_width=260), gr.Group():
                    chosen = gr.Dropdown(
                        self.models,
                        value=name,
                        label=f"Model {letter}",
                        visible=len(self.models) > 1,
                        filterable=False,
                    )
                    # Of one model, two numbers of steps are what one wants to see first.
                    first = max(1, steps // 5) if letter == "A" and other == model else steps
                    sides.append(
                        [
                            chosen,
                            gr.Slider(
                                1, engine.limits.max_steps, value=first, step=1, label=f"Steps {letter}"
                            ),
                            gr.Slider(
                                0, 20, value=defaults["guidance_scale"], step=0.1, label=f"Guidance {letter}"
                            ),
                        ]
                    )
        with gr.Accordion("What both share", open=False):
            defaults = engine.facts(model).default_call
            with gr.Row():
                frames = gr.Slider(
                    1,
                    min(64, engine.limits.max_frames),
                    value=defaults["num_frames"],
                    step=1,
                    label="Frames of both",
                )
                fps = gr.Slider(1, 60, value=defaults["fps"], step=1, label="Frames per second of both")
            width, height = self._size_fields(model)
            with gr.Row(equal_height=True):
                self.pair_seed = _seed_field(gr)
                pair_random = gr.Checkbox(label="Random seed", value=True, min_width=120)
        with gr.Row():
            self.pair_go = gr.Button("Compare", variant="primary", scale=3, min_width=120)
            self.pair_take = gr.Button("Use Generate's prompt", scale=2, min_width=160)
            self.pair_halt = gr.Button("Stop", variant="stop", scale=1, min_width=80, interactive=False)
        self.pair_status = gr.HTML(_status(""), js_on_load=style.ANNOUNCE)
        with gr.Column(elem_id="hb-pair"):
            self.pair_slots = [gr.HTML("", visible=False, js_on_load=style.ON_LOAD) for _ in range(2)]
        self.pair = [
            self.pair_prompt, *sides[0], *sides[1], frames, fps, width, height, self.pair_seed, pair_random
        ]  # fmt: skip

    def _build_model(self) -> None:
        import gradio as gr

        model = self.engine.default_model
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self.chosen = gr.Dropdown(self.models, value=model, label="Model to load", filterable=False)
                self.load = gr.Button("Load this model", variant="primary")
                gr.HTML(
                    '<p class="hb-draws">One model is in memory at a time: loading one frees the one before. '
                    "Videos that wait for another model load theirs again when it is their turn.</p>",
                    js_on_load=None,
                )
                self.facts = gr.HTML(model_page.facts_table(self.engine), js_on_load=None)
            with gr.Column(scale=3, min_width=300):
                self.card = gr.Markdown(
                    model_page.card_of(self.engine.models[model]), elem_classes="hb-model-card"
                )

    # --- wiring ---------------------------------------------------------------------------------------------

    def _connect(self, demo: gr.Blocks, model_tab: gr.Tab) -> None:
        import gradio as gr

        # Looking at jobs is cheap, and how many are taken is the engine's business.
        hidden: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": None,
        }
        quick = {**hidden, "queue": False}
        running = [self.status, self.halt, self.blank, *self.slots, self.history]
        pair_running = [self.pair_status, self.pair_halt, *self.pair_slots, self.history]

        demo.load(
            self.on_load,
            [self.client, self.form_state, self.pair_state],
            [self.client, *self.form, *self.pair, self.header, *self._by_model(), self.facts],
            **quick,
        )
        demo.load(self.on_return, [self.client, self.batch], running, **hidden)
        demo.load(self.on_pair_return, [self.client, self.pair_batch], pair_running, **hidden)

        made = [
            self.client,
            self.batch,
            self.prompt,
            self.rewritten,
            self.undo,
            self.note,
            self.seed,
            *running,
        ]
        gr.on(
            [self.go.click, self.prompt.submit],
            self.on_generate,
            [self.client, self.rewrites_always, self.rewritten, *self.form],
            made,
            **hidden,
        )
        self.halt.click(self.on_stop, [self.client, self.batch], self.status, **quick)
        self.pair_go.click(
            self.on_compare,
            [self.client, *self.pair],
            [self.client, self.pair_batch, self.pair_seed, *pair_running],
            **hidden,
        )
        self.pair_halt.click(self.on_stop, [self.client, self.pair_batch], self.pair_status, **quick)
        self.pair_take.click(lambda prompt: prompt, self.prompt, self.pair_prompt, **quick)

        gr.on([part.change for part in self.form], None, self.form, self.form_state, js=_KEEP, **quick)
        gr.on([part.change for part in self.pair], None, self.pair, self.pair_state, js=_KEEP, **quick)

        self.prompt.change(
            self.on_prompt,
            [self.prompt, self.model, self.rewritten],
            [self.note, *self.choices],
            trigger_mode="always_last",
            **quick,
        )
        self.examples.click(_with_event(self.on_example), self.model, self.prompt, **quick)
        for choice in self.choices:
            choice.input(self.on_build, self.choices, self.prompt, **quick)
        self.surprise.click(self.on_surprise, None, self.prompt, **quick)
        self.reuse.click(self.on_reuse_seed, [self.client, self.batch], [self.seed, self.is_random], **quick)
        for piece in (*self.slots, *self.pair_slots, self.history):
            piece.click(_with_event(self.on_card), self.client, [self.history, *self.form], **quick)

        self.model.input(self.on_model, self.model, [*self._by_model(), *self._defaults()], **quick)
        self.load.click(
            self.on_switch,
            self.chosen,
            [self.facts, self.card, self.header, self.model, *self._by_model(), *self._defaults()],
            api_visibility="private",
            show_progress="minimal",
        )
        self.chosen.input(
            lambda name: model_page.card_of(self.engine.models[name]), self.chosen, self.card, **quick
        )
        model_tab.select(lambda: model_page.facts_table(self.engine), None, self.facts, **quick)
        if self.rewriter is not None:
            changed = [self.prompt, self.rewritten, self.undo, self.note]
            self.rewrite.click(self.on_rewrite, [self.prompt, self.model], changed, **hidden)
            self.undo.click(self.on_undo, [self.rewritten, self.model], changed, **quick)

    def _by_model(self) -> list[Any]:
        """Parts that depend on the model but hold nothing that the user entered."""
        return [self.draws, self.examples, self.builder, self.negative]

    def _defaults(self) -> list[Any]:
        """Parts that a change of the model sets to its own defaults."""
        return [self.steps, self.guidance, self.frames, self.fps, self.width, self.height]

    # --- what depends on the model --------------------------------------------------------------------------

    def _header(self, model: str) -> str:
        info = self.engine.model_info
        where = f" on {info.device}, {info.dtype}" if info and info.name == model else ""
        return (
            f'<div class="hb-header">{cards.BIRD}<div><h1>Hummingbird</h1>'
            '<p class="hb-tagline">Text to video in few steps</p></div>'
            f'<span class="hb-chip"><span>Model <b>{escape(model)}</b>{escape(where)}</span></span></div>'
        )

    def _examples(self, model: str) -> Sequence[str]:
        return moving_shapes.EXAMPLES if self.videos.speaks_world(model) else GENERAL_EXAMPLES

    def _example_buttons(self, model: str) -> str:
        buttons = "".join(
            f'<li><button type="button" data-action="example" data-value="{index}">{escape(text)}</button>'
            "</li>"
            for index, text in enumerate(self._examples(model))
        )
        return f'<ul class="hb-examples" aria-label="Example prompts">{buttons}</ul>'

    def _draws(self, model: str) -> str:
        if not self.videos.speaks_world(model):
            return ""
        return f'<p class="hb-draws">{escape(moving_shapes.WHAT_IT_DRAWS)}</p>'

    def _takes_negative(self, model: str) -> bool:
        return self.engine.facts(model).has_guidance_embedding is False

    def _for_model(self, model: str) -> list[Any]:
        """New values of ``_by_model``."""
        import gradio as gr

        return [
            self._draws(model),
            self._example_buttons(model),
            gr.update(visible=self.videos.speaks_world(model)),
            gr.update(visible=self._takes_negative(model)),
        ]

    def _defaults_of(self, model: str) -> list[Any]:
        """New values of ``_defaults``."""
        import gradio as gr

        call = self.engine.facts(model).default_call
        steps = gr.update(value=call["num_inference_steps"], maximum=self.engine.max_steps(model))
        names = ("guidance_scale", "num_frames", "fps", "width", "height")
        return [steps, *(call[name] for name in names)]

    def on_model(self, model: str) -> list[Any]:
        """Another model is chosen for the next video; nothing is loaded before it is needed."""
        return [*self._for_model(model), *self._defaults_of(model)]

    async def on_switch(self, name: str) -> list[Any]:
        """Load a model now, and make it the next video's."""
        import gradio as gr

        try:
            info = await asyncio.to_thread(self.engine.load_model, name)
        except (ValueError, OSError, RuntimeError) as error:
            raise _error(f"{name} cannot be loaded: {error}") from error
        gr.Info(f"{name} is loaded: {info.load_seconds:.1f} s.", duration=4)
        return [
            model_page.facts_table(self.engine),
            model_page.card_of(self.engine.models[name]),
            self._header(name),
            name,
            *self.on_model(name),
        ]

    # --- coming back ----------------------------------------------------------------------------------------

    def on_load(self, client: Any, form: Any, pair: Any) -> list[Any]:
        """Put everything back to where this browser left it."""
        values = self._restored(form, _FORM, self.form)
        model = values[1] if values[1] in self.models else self.engine.default_model
        return [
            jobs.client_of(client),
            *values,
            *self._restored(pair, _PAIR, self.pair),
            self._header(model),
            *self._for_model(model),
            model_page.facts_table(self.engine),
        ]

    def _restored(self, stored: Any, names: Sequence[str], parts: Sequence[Any]) -> list[Any]:
        """Kept values where they can be this part's, the part's first value elsewhere.

        They come from the browser and may be of an older page, or anything.
        """
        kept = stored.get("values") if isinstance(stored, dict) else None
        if not isinstance(kept, list) or len(kept) != len(names):
            return [part.value for part in parts]
        values = []
        for name, part, value in zip(names, parts, kept, strict=True):
            first = part.value
            fits = (
                isinstance(value, (int, float)) if isinstance(first, (int, float)) else isinstance(value, str)
            )
            if name.startswith("model"):
                fits = value in self.models
            values.append(value if fits else first)
        return values

    async def on_return(self, client: Any, batch: Any) -> AsyncIterator[list[Any]]:
        """Show the last videos again, and follow those that are still in the making."""
        async for update in self._show(_ids(batch), jobs.client_of(client)):
            yield update

    async def on_pair_return(self, client: Any, batch: Any) -> AsyncIterator[list[Any]]:
        """The same for a comparison."""
        async for update in self._show_pair(_ids(batch), jobs.client_of(client)):
            yield update

    # --- making videos --------------------------------------------------------------------------------------

    async def on_generate(
        self, client: Any, rewrites_always: bool, rewritten: Any, *values: Any
    ) -> AsyncIterator[list[Any]]:
        """Queue the videos and show them until all have ended."""
        import gradio as gr

        form = dict(zip(_FORM, values, strict=True))
        client = jobs.client_of(client)
        note, is_undone = gr.skip(), gr.skip()
        model, prompt = form["model"], form["prompt"]
        is_rewritten = isinstance(rewritten, dict) and rewritten.get("after") == prompt
        if self.rewriter is not None and rewrites_always and prompt.strip() and not is_rewritten:
            prompt, rewritten, is_undone, note = await self.on_rewrite(prompt, model)
        seed = jobs.new_seed() if form["is_random"] else _whole(form["seed"], "Seed", jobs.MAX_SEED)
        count = _whole(form["num_videos"], "Videos at once", MAX_VIDEOS)
        ids = await self._submit({**form, "prompt": prompt}, seed, count, client)
        first = [client, {"ids": ids}, prompt, rewritten, is_undone, note, seed]
        async for update in self._show(ids, client, is_new=True):
            yield [*first, *update]
            first = [gr.skip()] * len(first)

    async def _submit(self, form: dict[str, Any], seed: int, count: int, client: str) -> list[str]:
        import gradio as gr

        from hummingbird.serving import QueueFull, StorageFull

        fields = {
            name: value for name, value in form.items() if name not in ("num_videos", "seed", "is_random")
        }
        if not self._takes_negative(fields["model"]):
            fields["negative_prompt"] = None
        try:
            requests = jobs.requests_of(self.engine, fields, seed, count)
            ids, left_out = await asyncio.to_thread(jobs.submit, self.engine, requests, client)
        except (ValueError, QueueFull, StorageFull, OSError) as error:
            raise _error(str(error)) from error
        if left_out:
            gr.Warning(escape(left_out))
        return ids

    async def _show(
        self, ids: Sequence[str], client: str, *, is_new: bool = False
    ) -> AsyncIterator[list[Any]]:
        """Updates of status, stop button, blank, slots and history."""
        import gradio as gr

        ids = ids[:MAX_VIDEOS]
        async for status, halt, slots, history in self._updates(ids, client, MAX_VIDEOS, is_new=is_new):
            yield [status, halt, gr.update(visible=not ids), *slots, history]

    async def _show_pair(
        self, ids: Sequence[str], client: str, *, is_new: bool = False
    ) -> AsyncIterator[list[Any]]:
        async for status, halt, slots, history in self._updates(
            ids[:2], client, 2, ("A", "B"), is_new=is_new
        ):
            yield [status, halt, *slots, history]

    async def _updates(
        self, ids: Sequence[str], client: str, num_slots: int, labels: Sequence[str] = (), *, is_new: bool
    ) -> AsyncIterator[tuple[Any, Any, list[Any], Any]]:
        """Status, stop button, slots and history, each only where it has changed: a video plays on."""
        import gradio as gr

        shown: list[str | None] = [None] * num_slots
        num_ended, status = -1, None
        async for views in jobs.follow(self.videos, ids, client, labels[: len(ids)]):
            texts = [cards.card(view) if view else "" for view in views] + [""] * (num_slots - len(views))
            slots = [
                gr.skip() if text == before else gr.update(value=text, visible=bool(text))
                for text, before in zip(texts, shown, strict=True)
            ]
            shown = list(texts)
            before, num_ended = num_ended, sum(view is None or not unfinished([view]) for view in views)
            history = gr.skip()
            if num_ended != before:
                history = cards.history(await asyncio.to_thread(self.videos.history, client))
                status = _summary(views) if is_new or unfinished(views) else ""
            yield (
                gr.skip() if num_ended == before else _status(status or ""),
                gr.update(interactive=unfinished(views)),
                slots,
                history,
            )

    async def on_compare(self, client: Any, *values: Any) -> AsyncIterator[list[Any]]:
        """Queue both sides with one seed and show them side by side."""
        import gradio as gr

        form = dict(zip(_PAIR, values, strict=True))
        client = jobs.client_of(client)
        seed = jobs.new_seed() if form["is_random"] else _whole(form["seed"], "Seed", jobs.MAX_SEED)
        shared = {name: form[name] for name in ("prompt", "num_frames", "fps", "width", "height")}
        sides = []
        for letter in "ab":
            own = {
                name: form[f"{name}_{letter}"] for name in ("model", "num_inference_steps", "guidance_scale")
            }
            sides.append({**shared, **own})
        # Both are checked before one is queued.
        for side in sides:
            try:
                jobs.requests_of(self.engine, side, seed)
            except ValueError as error:
                raise _error(str(error)) from error
        ids = [(await self._submit(side, seed, 1, client))[0] for side in sides]
        first = [client, {"ids": ids}, seed]
        async for update in self._show_pair(ids, client, is_new=True):
            yield [*first, *update]
            first = [gr.skip()] * len(first)

    def on_stop(self, client: Any, batch: Any) -> str:
        """Cancel the batch: what waits at once, what runs after the step that it is in."""
        count = jobs.stop(self.engine, self.videos, _ids(batch), jobs.client_of(client))
        return _status(f"Stopping {count} videos" if count != 1 else "Stopping the video")

    # --- prompts --------------------------------------------------------------------------------------------

    def on_prompt(self, prompt: str, model: str, rewritten: Any) -> list[Any]:
        """Say where a prompt comes from, or that it asks for what the model has never seen; set the builder
        where it is a sentence of its own."""
        import gradio as gr

        asked = world.parse_caption(prompt)
        choices = [gr.skip() if asked is None else getattr(asked, name) for name in world.ATTRIBUTES]
        return [self._note_on(prompt, model, rewritten), *choices]

    def _note_on(self, prompt: str, model: str, rewritten: Any = None) -> str:
        if isinstance(rewritten, dict) and rewritten["after"] == prompt:
            what = "What stands above is what is used; change it as you like."
            return _note(f"Rewritten from “{rewritten['before']}”. {what}", "hb-good")
        return _note(moving_shapes.note_on(prompt)) if self.videos.speaks_world(model) else ""

    def on_example(self, model: str, event: gr.EventData) -> str:
        """Take an example."""
        examples = self._examples(model)
        return examples[int(event._data.get("value", 0)) % len(examples)]

    def on_build(self, shape: str, color: str, motion: str, background: str) -> str:
        """Write the sentence of the builder's choices."""
        return moving_shapes.build_prompt(shape, color, motion, background)

    def on_surprise(self) -> str:
        """Any sentence of the world."""
        return moving_shapes.random_prompt(random.SystemRandom())

    async def on_rewrite(self, prompt: str, model: str) -> tuple[str, dict[str, str], Any, str]:
        """Put the rewritten prompt in the place of the user's, and say so; on failure nothing is replaced."""
        import gradio as gr

        assert self.rewriter is not None
        if not prompt.strip():
            raise _error("The prompt is empty: there is nothing to rewrite.")
        instruction = instruction_for(speaks_world=self.videos.speaks_world(model))
        try:
            text = await asyncio.to_thread(self.rewriter.rewrite, prompt, instruction)
        except RewritingError as error:
            raise _error(
                f"Not rewritten, and nothing was generated: {error}. Your prompt is unchanged."
            ) from error
        rewritten = {"before": prompt, "after": text}
        return text, rewritten, gr.update(visible=True), self._note_on(text, model, rewritten)

    def on_undo(self, rewritten: Any, model: str) -> tuple[Any, None, Any, str]:
        """Back to what the user wrote."""
        import gradio as gr

        before = rewritten["before"] if isinstance(rewritten, dict) else gr.skip()
        note = self._note_on(before, model) if isinstance(before, str) else ""
        return before, None, gr.update(visible=False), note

    # --- cards ----------------------------------------------------------------------------------------------

    def on_reuse_seed(self, client: Any, batch: Any) -> list[Any]:
        """Fix the seed to that of the last video."""
        import gradio as gr

        for job_id in _ids(batch):
            job = self.videos.owned(job_id, jobs.client_of(client))
            if job is not None:
                return [job.request.seed, False]
        gr.Info("There is no video yet whose seed could be used.")
        return [gr.skip(), gr.skip()]

    def on_card(self, client: Any, event: gr.EventData) -> list[Any]:
        """A button of a card: take its settings, or take it off the list."""
        import gradio as gr

        client = jobs.client_of(client)
        skipped = [gr.skip()] * len(self.form)
        job = self.videos.owned(event._data.get("value"), client)
        if job is None:
            gr.Info("The server does not have this video any more.")
            return [cards.history(self.videos.history(client)), *skipped]
        if event._data.get("action") == "remove":
            self.engine.remove(job.id)
            return [cards.history(self.videos.history(client)), *skipped]
        request = job.request
        gr.Info("Its settings and its seed stand in Generate now.", duration=3)
        return [
            gr.skip(), request.prompt, request.model, 1, request.num_inference_steps, request.guidance_scale,
            request.num_frames, request.fps, request.width, request.height, request.negative_prompt or "",
            request.seed, False,
        ]  # fmt: skip


def _with_event(handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Make gradio hand the event in: it looks for the type itself, which is a text where gradio is lazy."""
    import gradio as gr

    def call(value: Any, event: Any) -> Any:
        return handler(value, event)

    call.__annotations__["event"] = gr.EventData
    return call


def _seed_field(gr: Any) -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=jobs.MAX_SEED, min_width=110)


def _ids(batch: Any) -> list[Any]:
    """Ids that the browser kept; it may send anything."""
    ids = batch.get("ids") if isinstance(batch, dict) else None
    return ids[:MAX_VIDEOS] if isinstance(ids, list) else []


def _whole(value: Any, name: str, most: int) -> int:
    if not isinstance(value, (int, float)) or not 0 <= value <= most or int(value) != value:
        raise _error(f"{name}: got {value}, expected a whole number up to {most}.")
    return int(value)


def _error(message: str) -> gr.Error:
    """One line in the page; what users wrote in it stays text."""
    import gradio as gr

    return gr.Error(
        escape(" ".join(message.split())), duration=12, print_exception=False, title="Not possible"
    )


def _note(text: str, kind: str = "") -> str:
    return f'<p class="hb-note {kind}">{escape(text)}</p>' if text else ""


def _status(text: str) -> str:
    """For screen readers: what has begun or ended; the steps between are on the cards."""
    return f'<div class="hb-status">{escape(text)}</div>'


def _summary(views: Sequence[Any]) -> str:
    present = [view for view in views if view is not None]
    if unfinished(present):
        ended = sum(not unfinished([view]) for view in present)
        return f"{ended} of {len(present)} videos finished" if len(present) > 1 else "Making the video"
    done = sum(view.status == "done" for view in present)
    return f"{done} of {len(present)} videos are done" if len(present) != 1 else f"Video {present[0].status}"
