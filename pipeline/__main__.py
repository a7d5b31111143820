from cbatch.cli import main  # `python pipeline run jobs/hello.yaml` from a clone, nothing installed

main()
