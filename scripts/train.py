"""Train a recipe, stage 2 or all stages: accelerate launch scripts/train.py hub_configs/mister-e-meld-small.yaml --corpus FOLDER"""

from mister_e_hf.stages import main_train

if __name__ == "__main__":
    main_train()
