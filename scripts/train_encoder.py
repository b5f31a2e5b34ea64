"""Train an encoder of stage 1: accelerate launch scripts/train_encoder.py RECIPE --modality text --corpus FOLDER"""

from mister_e_hf.stages import main_train_encoder

if __name__ == "__main__":
    main_train_encoder()
