"""Train stage 2: accelerate launch scripts/train.py hub_configs/mister-e-meld-small.yaml --corpus FOLDER"""

from mister_e_hf.experiment import main

if __name__ == "__main__":
    main()
