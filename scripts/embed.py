"""Make vectors by trained encoders: accelerate launch scripts/embed.py RECIPE --corpus FOLDER --out VECTORS"""

from mister_e_hf.stages import main_embed

if __name__ == "__main__":
    main_embed()
