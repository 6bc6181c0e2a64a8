"""Run folders: their names, and what a run says of itself."""

from experiments.rows import run_folders


def test_run_folder():
    assert run_folders.run_folder("runs", "x").as_posix() == "runs/x/default"
    assert run_folders.run_folder("runs", "x", "a,b").as_posix() == "runs/x/a,b"


def test_a_folder_of_many_overrides_fits_the_disk(tmp_path):
    variants = [f"ppo+{'+'.join(f'agent.setting_{i}=0.{i}' for i in range(40))}+last={last}" for last in (1, 2)]
    folders = [run_folders.run_folder(tmp_path, "x", variant) for variant in variants]
    for folder in folders:
        folder.mkdir(parents=True)
        assert (
            folder.name.startswith("ppo+agent.setting_0=0.0+") and len(folder.name.encode()) == run_folders.LONGEST_NAME
        )
    assert folders[0] != folders[1]
    # Letters of two bytes are not cut in half.
    assert len(run_folders.run_folder(tmp_path, "x", "ä" * 150).name.encode()) in (199, 200)
