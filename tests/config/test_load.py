import pytest
import yaml

from physion.config.load import fingerprinted, load_config, preset_names, preset_text, study_class
from physion.errors import ConfigError, nearest


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_opens_with_its_command(name):
    from physion.config.load import preset_text

    config = load_config(name)
    assert config.preset == name
    assert f"physion run --preset {name} " in preset_text(name)


def test_the_paper_preset_has_the_published_hyperparameters():
    config = load_config("paper")
    dvae, steve, slotformer, readout = config.train_dvae, config.train_steve, config.train_slotformer, config.train_readout
    assert (dvae.optim.lr, dvae.optim.batch_size, dvae.optim.steps, dvae.model.codes) == (1e-3, 64, 712_500, 4096)
    assert (steve.optim.lr, steve.decoder_lr, steve.optim.batch_size, steve.optim.steps) == (1e-4, 3e-4, 48, 459_160)
    assert (steve.optim.clip, steve.optim.final_lr, steve.clip_frames) == (0.05, 0.0, 6)
    assert (slotformer.optim.lr, slotformer.optim.batch_size, slotformer.optim.steps) == (2e-4, 128, 231_550)
    assert (slotformer.model.burn_in, slotformer.rollout_frames, slotformer.model.stride) == (15, 10, 3)
    assert (readout.optim.lr, readout.optim.batch_size, readout.optim.steps, readout.optim.warmup) == (1e-3, 64, 5900, 0)
    assert (config.rollout.observed, readout.frames.rollout, readout.frames.full) == (45, 75, 150)


def test_overrides_are_yaml_and_reach_any_depth():
    config = load_config(
        "smoke",
        ["train-steve.optim.lr=2e-4", "train-readout.seeds=[3, 4]", "fetch.root=/data/a b", "train-steve.optim.clip=null"],
    )
    assert config.train_steve.optim.lr == 2e-4
    assert config.train_readout.seeds == (3, 4)
    assert config.fetch.root == "/data/a b"
    assert config.train_steve.optim.clip is None


def test_a_preset_may_say_only_what_it_changes(tmp_path):
    """Of a shipped one or of a file; what is laid over a section leaves the rest of it."""
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("base: smoke\ntrain-dvae: {optim: {lr: 0.5, steps: 3}}\ntrain-readout: {seeds: [4]}\n")
    two.write_text(f"base: {one}\ntrain-dvae: {{optim: {{steps: 7}}}}\n")
    wanted = ["train-dvae.optim.lr=0.5", "train-dvae.optim.steps=7", "train-readout.seeds=[4]"]
    config = load_config(str(two))
    assert config.preset == "two"
    assert config.model_copy(update={"preset": "smoke"}) == load_config("smoke", wanted)
    assert load_config(str(two), ["train-dvae.optim.steps=9"]).train_dvae.optim.steps == 9


@pytest.mark.parametrize("base", ["smok", "[smoke]", "{path}", "{other}"])
def test_a_base_that_is_none(tmp_path, base):
    path, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    path.write_text("base: " + base.format(path=path, other=other))
    other.write_text(f"base: {path}")
    said = "did you mean 'smoke'" if base == "smok" else "'base' is not the name of another preset"
    with pytest.raises(ConfigError, match=said):
        load_config(str(path))


def test_an_override_of_a_section_the_preset_leaves_out():
    assert load_config("paper", ["train-steve.model.slots=7"]).train_steve.model.slots == 7


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train-dvea.optim.lr=1", "unknown key 'train-dvea', did you mean 'train-dvae'?"),
        ("train-dvae.optm.lr=1", "unknown key 'train-dvae.optm', did you mean 'optim'?"),
        ("train-dvae.optim.learning=1", "unknown key 'train-dvae.optim.learning'"),
        ("train-dvae.optim.lr=fast", "'train-dvae.optim.lr': input should be a valid number"),
        ("train-dvae.optim.lr=-1", "'train-dvae.optim.lr': input should be greater than 0, not -1"),
        ("train-dvae.optim.lr=.inf", "'train-dvae.optim.lr': input should be a finite number"),
        ("train-dvae.optim.steps=1.5", "'train-dvae.optim.steps': input should be a valid integer"),
        ("train-dvae.model.codes=40000", "'train-dvae.model.codes': input should be less than or equal to 32768"),
        ("train-dvae.optim.lr.x=1", "'lr' holds a value, not a section"),
        ("train-steve.model.predictor-heads=5", "slot-size 16 is not divisible by predictor-heads 5"),
        ("train-slotformer.model.heads=3", "d-model 16 is not divisible by heads 3"),
        ("train-readout.frames.full=151", "train-readout.frames.full takes 151 frames, more than frames.frames=150"),
        ("rollout.observed=14", "rollout.observed=14 is less than train-slotformer.model burn-in 5 times stride 3"),
        (
            "train-readout.frames.rollout=45",
            "frames.rollout=45 holds no predicted frame after rollout.observed=45",
        ),
        ("train-readout.seeds=[]", "'train-readout.seeds'"),
        ("train-readout.seeds=[1, 1]", "'train-readout.seeds': the values must differ from each other"),
        ("train-readout.features=[sight]", "'observed', 'rollout' or 'full'"),
        ("simulate.seed=-1", "'simulate.seed': input should be greater than or equal to 0"),
        ("frames=12", "'frames': input should be a valid dictionary"),
        ("no equals sign", "--set no equals sign: not of the form stage.key=value"),
        ("=3", "not of the form"),
        ("frames.heldout={a: [1}", "--set frames.heldout={a: [1}: the value: not valid YAML"),
        ("frames.heldout=2026-99-99", "the value: not valid YAML"),
        ("frames.heldout=0x_", "not valid YAML"),
        ("frames.heldout=!!int", "not valid YAML"),
        ("frames.heldout=!!timestamp a", "not valid YAML"),
        ("frames.heldout=" + "[" * 3000, "nested too deep"),
    ],
    ids=lambda text: text[:40],
)
def test_a_bad_override_is_one_clear_line(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config("smoke", [override])
    assert said in str(caught.value)
    assert caught.value.exit_code == 2
    assert "Traceback" not in str(caught.value)


def test_all_problems_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        load_config("smoke", ["train-dvae.optm.lr=1", "frames.image-size=33", "train-steve.seed=x"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "multiple of 4" in str(caught.value)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown preset 'tinny', did you mean 'tiny'\?"):
        load_config("tinny")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "not valid YAML"),
        ("a: 2026-99-99", "not valid YAML: month must be in 1..12"),
        ("[" * 3000, "nested too deep"),
        ("- 1\n- 2\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("dataset: fetch\n", "missing"),
    ],
    ids=lambda text: text[:40],
)
def test_a_bad_preset_file(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(str(path))


def test_a_preset_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(str(tmp_path / "none.yaml"))


def test_what_show_prints_loads_again(tmp_path):
    config = load_config("tiny", ["frames.heldout=0.3"])
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(str(path)) == config


def test_an_override_reaches_only_its_place_where_yaml_shares_a_mapping(tmp_path):
    tree = yaml.safe_load(preset_text("smoke"))
    shared = tree["train-steve"]["optim"]
    tree["train-dvae"]["optim"] = tree["train-slotformer"]["optim"] = shared
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(tree))
    assert "&id" in (tmp_path / "shared.yaml").read_text()
    config = load_config(str(tmp_path / "shared.yaml"), ["train-steve.optim.lr=0.5"])
    assert config.train_steve.optim.lr == 0.5
    assert config.train_dvae.optim.lr == config.train_slotformer.optim.lr == shared["lr"]


def test_knobs_are_left_out_of_what_is_fingerprinted():
    config = load_config("tiny")
    plain = fingerprinted(config.train_dvae)
    assert "checkpoint-every" not in plain
    assert "loader-workers" not in plain
    assert plain["optim"]["lr"] == config.train_dvae.optim.lr
    assert "workers" not in fingerprinted(config.simulate)
    assert "videos-per-part" not in fingerprinted(config.simulate)


def test_nearest_says_nothing_when_nothing_is_near():
    assert nearest("xyzzy", list(study_class().model_fields)) == ""


def test_an_override_is_of_one_stage_also_where_an_anchor_shares_a_section(tmp_path):
    path = tmp_path / "anchors.yaml"
    tree = load_config("smoke").model_dump(mode="json")
    tree["train-slotformer"]["optim"] = tree["train-dvae"]["optim"]
    path.write_text(yaml.safe_dump(tree))
    assert "&id001" in path.read_text()
    config = load_config(str(path), ["train-dvae.optim.steps=7"])
    assert (config.train_dvae.optim.steps, config.train_slotformer.optim.steps) == (7, 60)


def test_a_later_option_changes_nothing_until_it_is_used():
    """What was made before there was this option keeps its name."""
    unused, used = (load_config("smoke", [f"train-steve.balance={value}"]).train_steve for value in (0, 0.5))
    assert "balance" not in fingerprinted(unused)
    assert fingerprinted(used)["balance"] == 0.5
