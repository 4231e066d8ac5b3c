"""Datasets as they lie on a disk, one file per format; each yields `Annotation`s in THE convention."""
